"""From the files of a model to its facts. The files are somebody else's: everything that is read has a limit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from uellm.errors import BadInput
from uellm.hub import adapter
from uellm.hub.adapter import AdapterFacts
from uellm.hub.facts import LookUpRefusal, ModelFacts
from uellm.models import PARAMS, Tensor, config_of_params, tasks_of, with_quantization_file
from uellm.models.safetensors import (
    CONSOLIDATED_INDEX,
    CONSOLIDATED_SINGLE,
    INDEX,
    LENGTH_BYTES,
    indexed_files,
    parse_header,
)
from uellm.models.tasks import SENTENCE_TRANSFORMERS

CONFIG, QUANTIZATION, SINGLE = "config.json", "hf_quant_config.json", "model.safetensors"
LENGTH_FIELD = "max_position_embeddings"
MODULES = "modules.json"
"""The parts of a model in the format of sentence-transformers."""
OTHER_WEIGHTS = ("pytorch_model.bin.index.json", "pytorch_model.bin")
"""Files of weights that the engine reads, too, and whose sizes are not read here."""
CONFIG_BYTES, INDEX_BYTES, FIRST_BYTES = 4 << 20, 64 << 20, 64 << 10
"""The most that is read of a JSON file and of an index; and what is read of a tensor file at first."""
HEADERS_BYTES = 64 << 20
"""The most that is read of the headers of all files together."""
FILES = 1024
PARALLEL = 8


class RefusedError(Exception):
    """A look-up ends in a refusal."""

    def __init__(self, refusal: LookUpRefusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True)
class Part:
    """Part of a file. `body` is cut at the limit that was asked for; `whole` says whether it was not."""

    body: bytes
    whole: bool
    file_bytes: int | None
    """Size of the whole file; None where it is not known."""


class Files(Protocol):
    """The files of one model."""

    where: str
    """What they are called in sentences."""

    def read(self, name: str, *, first: int = 0, limit: int) -> Part | None:
        """At most `limit` bytes of a file from byte `first` on; None where there is none. Raises RefusedError."""

    def pin(self) -> str:
        """Once a file was read: the commit that it is of, at which every further file is read; empty for none."""

    def tensor_files(self) -> Sequence[str]:
        """Files of tensors that there may be, where no index names them."""


def read_adapter(files: Files, name: str, source: str) -> AdapterFacts | LookUpRefusal:
    """The facts of a LoRA adapter, or why there are none or the engine would refuse it."""
    return _Reading(files).adapter(name, source)


def read_facts(files: Files) -> ModelFacts | LookUpRefusal:
    """The facts of a model."""
    return _Reading(files).facts()


class _Reading:
    def __init__(self, files: Files) -> None:
        self.files = files
        self.header_bytes = 0

    def facts(self) -> ModelFacts | LookUpRefusal:
        try:
            config = self._config()
            commit = self.files.pin()
            config = self._no_longer_than_params(config)
            quantization = self._json(QUANTIZATION, CONFIG_BYTES)
            if quantization is not None:
                config = dict(with_quantization_file(config, quantization))
            # Of a class that writes text, this file alone tells an embedder.
            if tasks_of(config).inferred == "Generate" and self.files.read(MODULES, limit=1) is not None:
                config = {**config, SENTENCE_TRANSFORMERS: True}
            headers = self._headers()
        except RefusedError as error:
            return error.refusal
        except BadInput as error:
            return self._invalid(str(error))
        if headers:
            tensors = {name: tensor for header in headers for name, tensor in header.items()}
            return ModelFacts(commit, config, tensors, len(headers))
        return ModelFacts(commit, config, None)

    def adapter(self, name: str, source: str) -> AdapterFacts | LookUpRefusal:
        try:
            part = self.files.read(adapter.CONFIG, limit=CONFIG_BYTES)
            if part is None:
                return self._no_adapter(f"has no {adapter.CONFIG}: it is no LoRA adapter")
            config = self._parsed(adapter.CONFIG, part)
            if problem := adapter.refusal_of_config(config):
                return LookUpRefusal("InvalidAdapter", f"{self.files.where} cannot be served: {problem}")
            commit = self.files.pin()
            tensors = self._header(adapter.WEIGHTS)
            if tensors is None:
                if all(self.files.read(other, limit=1) is None for other in adapter.OTHER_WEIGHTS):
                    return self._no_adapter(f"has no {adapter.WEIGHTS}")
                return self._no_adapter("has its weights in PyTorch's format alone: convert them to safetensors")
        except RefusedError as error:
            return error.refusal
        except BadInput as error:
            return self._invalid(str(error))
        return adapter.adapter_facts(name, source, commit, config, tensors)

    def _no_adapter(self, what: str) -> LookUpRefusal:
        return LookUpRefusal("InvalidAdapter", f"{self.files.where} {what}")

    def _config(self) -> dict[str, Any]:
        for name in (CONFIG, PARAMS):
            part = self.files.read(name, limit=CONFIG_BYTES)
            if part is None:
                continue
            config = self._parsed(name, part)
            if not isinstance(config, dict):
                raise RefusedError(self._invalid(f"{name} is no JSON object"))
            return config if name == CONFIG else config_of_params(config)
        message = f"{self.files.where} has neither config.json nor {PARAMS}: it is no model that the engine can read"
        raise RefusedError(LookUpRefusal("NoConfiguration", message))

    def _no_longer_than_params(self, config: dict[str, Any]) -> dict[str, Any]:
        """With the context of params.json where that is shorter: the engine prefers it beside consolidated weights."""
        text = config.get("text_config")
        section = text if isinstance(text, dict) else config
        length = section.get(LENGTH_FIELD)
        if type(length) is not int:
            return config
        part = self.files.read(PARAMS, limit=CONFIG_BYTES)
        weights = (CONSOLIDATED_SINGLE, CONSOLIDATED_INDEX)
        if part is None or all(self.files.read(name, limit=1) is None for name in weights):
            return config
        try:
            engines = config_of_params(self._parsed(PARAMS, part))
        except (RefusedError, BadInput):
            return config  # it is not of Mistral's format, or the user has the engine read config.json
        shorter = engines.get("text_config", engines)[LENGTH_FIELD]
        if type(shorter) is not int or not 0 < shorter < length:
            return config
        changed = {**section, LENGTH_FIELD: shorter}
        return {**config, "text_config": changed} if section is text else changed

    def _headers(self) -> list[dict[str, Tensor]]:
        """The tensors of each file; empty where the weights are in another format."""
        title, index = INDEX, self.files.read(INDEX, limit=INDEX_BYTES)
        if index is None:
            title, index = CONSOLIDATED_INDEX, self.files.read(CONSOLIDATED_INDEX, limit=INDEX_BYTES)
        names = self.files.tensor_files() if index is None else indexed_files(self._parsed(title, index), title)
        if len(names) > FILES:
            raise RefusedError(self._invalid(f"it has {len(names)} files of tensors; at most {FILES} are read"))
        with ThreadPoolExecutor(PARALLEL) as pool:
            found = dict(zip(names, pool.map(self._header, names), strict=True))
        missing = [name for name, header in found.items() if header is None]
        if index is not None and missing:
            raise RefusedError(self._invalid(f"{title} names {missing[0]}, which is not there"))
        headers = [header for header in found.values() if header is not None]
        if not headers and (consolidated := self._header(CONSOLIDATED_SINGLE)) is not None:
            headers = [consolidated]
        if not headers and all(self.files.read(name, limit=1) is None for name in OTHER_WEIGHTS):
            message = (
                f"{self.files.where} has neither safetensors nor PyTorch weights: name a repository or directory "
                "that has them"
            )
            raise RefusedError(LookUpRefusal("NoWeights", message))
        return headers

    def _header(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of one file; None where there is no such file."""
        part = self.files.read(name, limit=FIRST_BYTES)
        if part is None:
            return None
        length = int.from_bytes(part.body[:LENGTH_BYTES], "little")
        self.header_bytes += length
        if not 0 < length <= HEADERS_BYTES:
            raise RefusedError(self._invalid(f"{name} is no safetensors file: it claims a header of {length} bytes"))
        if self.header_bytes > HEADERS_BYTES:
            raise RefusedError(self._invalid(f"the headers of its files have more than {HEADERS_BYTES:,} bytes"))
        found, end = part.body[LENGTH_BYTES : LENGTH_BYTES + length], LENGTH_BYTES + length
        if len(part.body) < end and not part.whole:
            rest = self.files.read(name, first=len(part.body), limit=end - len(part.body))
            found += rest.body if rest else b""
        if len(found) < length:
            raise RefusedError(self._invalid(f"{name} is cut short: its header has {len(found)} of {length} bytes"))
        return parse_header(found, name, part.file_bytes)

    def _json(self, name: str, limit: int) -> Any:
        part = self.files.read(name, limit=limit)
        return None if part is None else self._parsed(name, part)

    def _parsed(self, name: str, part: Part) -> Any:
        if not part.whole:
            raise RefusedError(self._invalid(f"{name} has more than {len(part.body):,} bytes, which is the limit"))
        try:
            return json.loads(part.body)
        except (ValueError, RecursionError):
            raise RefusedError(self._invalid(f"{name} is not JSON")) from None

    def _invalid(self, cause: str) -> LookUpRefusal:
        return LookUpRefusal("InvalidAnswer", f"{self.files.where} cannot be read: {cause}")
