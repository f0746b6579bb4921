"""From a repository's name to the model's facts, by the hub's file routes alone, which mirrors have too.

`GET ENDPOINT/OWNER/NAME/resolve/REVISION/FILE`: the answer names the commit in `X-Repo-Commit` and what is wrong in
`X-Error-Code`. Source: huggingface_hub's file_download.py and utils/_http.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from uellm.errors import BadInput
from uellm.hub.connection import Answer, HubConnection, HubSettings
from uellm.hub.facts import LookUpRefusal, ModelFacts
from uellm.models import Tensor, with_quantization_file
from uellm.models.safetensors import INDEX, LENGTH_BYTES, LONGEST_HEADER, indexed_files, parse_header

CONFIG, QUANTIZATION, SINGLE = "config.json", "hf_quant_config.json", "model.safetensors"
CONFIG_BYTES, INDEX_BYTES, FIRST_BYTES = 4 << 20, 64 << 20, 64 << 10
"""The most that is read of a JSON file and of an index; and what is read of a tensor file at first."""
FILES = 1024
PARALLEL = 8
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = re.compile(r"\d{1,6}")
_LIMIT_SECONDS = re.compile(r"\bt=(\d{1,6})\b")


def look_up(repository: str, revision: str, settings: HubSettings) -> ModelFacts | LookUpRefusal:
    """The facts of `owner/name` at a branch, tag or commit. Blocks for seconds; makes no more than a few requests
    for each file of tensors."""
    with HubConnection(settings) as connection:
        return _LookUp(connection, repository, revision).facts()


class _RefusedError(Exception):
    def __init__(self, refusal: LookUpRefusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _LookUp:
    def __init__(self, connection: HubConnection, repository: str, revision: str) -> None:
        self.connection, self.repository, self.revision = connection, repository, revision
        self.page = f"{connection.settings.endpoint}/{repository}"

    def facts(self) -> ModelFacts | LookUpRefusal:
        try:
            config, commit = self._config()
            self.revision = commit  # whatever a branch comes to mean meanwhile
            quantization = self._json(QUANTIZATION, CONFIG_BYTES)
            if quantization is not None:
                config = dict(with_quantization_file(config, quantization))
            return ModelFacts(commit, config, self._tensors())
        except _RefusedError as error:
            return error.refusal
        except BadInput as error:
            return self._invalid(str(error))

    def _config(self) -> tuple[dict[str, Any], str]:
        answer = self._file(CONFIG, limit=CONFIG_BYTES)
        if answer is None:
            message = f"{self.page} has no config.json at {self.revision}: it is no model that the engine can read"
            raise _RefusedError(LookUpRefusal("NoConfiguration", message))
        config = self._parsed(CONFIG, answer)
        if not isinstance(config, dict):
            raise _RefusedError(self._invalid(f"{CONFIG} is no JSON object"))
        commit = answer.headers.get("x-repo-commit", "")
        return config, commit if _COMMIT.fullmatch(commit) else self.revision

    def _tensors(self) -> Mapping[str, Tensor] | None:
        index = self._file(INDEX, limit=INDEX_BYTES)
        if index is None:
            return self._header(SINGLE)
        names = indexed_files(self._parsed(INDEX, index), INDEX)
        if len(names) > FILES:
            raise _RefusedError(self._invalid(f"{INDEX} names {len(names)} files; at most {FILES} are read"))
        tensors: dict[str, Tensor] = {}
        with ThreadPoolExecutor(PARALLEL) as pool:
            for name, found in zip(names, pool.map(self._header, names), strict=True):
                if found is None:
                    raise _RefusedError(self._invalid(f"{INDEX} names {name}, which is not there"))
                tensors |= found
        return tensors

    def _header(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of one file; None where the repository lacks it."""
        answer = self._file(name, limit=FIRST_BYTES)
        if answer is None:
            return None
        length = int.from_bytes(answer.body[:LENGTH_BYTES], "little")
        if not 0 < length <= LONGEST_HEADER:
            raise _RefusedError(self._invalid(f"{name} is no safetensors file: it claims a header of {length} bytes"))
        found, end = answer.body[LENGTH_BYTES : LENGTH_BYTES + length], LENGTH_BYTES + length
        if len(answer.body) < end and not answer.whole:
            rest = self._file(name, first=len(answer.body), limit=end - len(answer.body))
            found += rest.body if rest else b""
        if len(found) < length:
            raise _RefusedError(self._invalid(f"{name} is cut short: its header has {len(found)} of {length} bytes"))
        return parse_header(found, name, answer.file_bytes)

    def _json(self, name: str, limit: int) -> Any:
        answer = self._file(name, limit=limit)
        return None if answer is None else self._parsed(name, answer)

    def _parsed(self, name: str, answer: Answer) -> Any:
        if not answer.whole:
            raise _RefusedError(self._invalid(f"{name} has more than {len(answer.body):,} bytes, which is the limit"))
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError):
            raise _RefusedError(self._invalid(f"{name} is not JSON")) from None

    def _file(self, name: str, *, first: int = 0, limit: int) -> Answer | None:
        """A file of the repository; None where it lacks it. Raises _RefusedError for anything else."""
        path = f"/{quote(self.repository)}/resolve/{quote(self.revision, safe='')}/{quote(name)}"
        answer = self.connection.get(path, first=first, limit=limit)
        if isinstance(answer, LookUpRefusal):
            raise _RefusedError(answer)
        if answer.status in (200, 206):
            return answer
        if answer.status == 404 and answer.headers.get("x-error-code", "EntryNotFound") == "EntryNotFound":
            return None
        raise _RefusedError(self._refusal(answer))

    def _refusal(self, answer: Answer) -> LookUpRefusal:
        code, status = answer.headers.get("x-error-code", ""), answer.status
        if code == "GatedRepo":
            what = "is gated: accept its terms on that page, and give a token of that account (HF_TOKEN)"
            return LookUpRefusal("Gated", f"{self.page} {what}")
        if code == "RevisionNotFound":
            what = f"has no revision {self.revision!r}: give a branch, tag or commit that is listed there"
            return LookUpRefusal("NoSuchRevision", f"{self.page} {what}")
        if code == "RepoNotFound" or status in (401, 403, 404):
            what = "does not exist, or is private: correct its name, or give a token that may read it (HF_TOKEN)"
            return LookUpRefusal("NoSuchRepository", f"{self.page} {what}")
        if status == 429:
            wait_s = _wait_s(answer.headers)
            when = f"in {wait_s:.0f} s" if wait_s is not None else "later"
            what = f"limits the rate of requests: ask again {when}, or give a token (HF_TOKEN)"
            return LookUpRefusal("RateLimited", f"{self.connection.settings.endpoint} {what}", wait_s)
        return LookUpRefusal("Unreachable", f"{self.page} was answered with status {status}: ask again later")

    def _invalid(self, cause: str) -> LookUpRefusal:
        return LookUpRefusal("InvalidAnswer", f"{self.page} cannot be read: {cause}")


def _wait_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until the next request: `Retry-After`, or `t` of the hub's own `RateLimit`."""
    if _SECONDS.fullmatch(headers.get("retry-after", "")):
        return float(headers["retry-after"])
    found = _LIMIT_SECONDS.search(headers.get("ratelimit", ""))
    return float(found[1]) if found else None
