"""The sidecar's configuration file, and how its changes are found.

    {version, model, classes: [{name, priority, ttft, tpot, e2e, onDeadline}], defaultClass,
     scheduling: {policy, maxQueuedRequests, predictor}, auth: {keysDirectory}, allowedRoutes: [/sleep],
     engine: {maxNumSeqs, maxNumBatchedTokens, task, acceptsPriority,
              stepSeconds: {floor, perPrefillToken, perKvToken, perSequence, overhead}}, prediction: {learned: false}}

Only `classes` is required; an empty list means one class `default` without targets. Unknown keys are ignored, because
the operator that writes the file may be newer than the sidecar that reads it.

In a pod, a second file takes the place of `model`, `engine` and `auth`. It is read once, for it belongs to the pod.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from uellm.api.sidecar_document import (
    DEFAULT_CLASS,
    EngineDocument,
    SidecarClass,
    SidecarDocument,
    SidecarStepSeconds,
    ToldAdapters,
    content_digest,
)
from uellm.errors import BadInput
from uellm.sidecar.scheduling import DEFAULT_STEP_TIME, Options, Targets
from uellm.step_time import UNCORRECTED, StepFactors, StepTime

T = TypeVar("T", bound=BaseModel)


class SidecarConfig(SidecarDocument):
    """The document as the scheduler takes it."""

    def of_pod(self, pod: EngineDocument) -> SidecarConfig:
        """With the sections of the pod's own file, and the adapters of its revision.

        An engine orders by priority only where the queue has an order.
        """
        accepts_priority = pod.engine.accepts_priority and self.scheduling.policy != "FCFS"
        engine = pod.engine.model_copy(update={"accepts_priority": accepts_priority})
        adapters = ToldAdapters(self.adapters, self.revision_adapters).of(pod.revision)
        own = {"model": pod.model, "engine": engine, "auth": pod.auth, "adapters": adapters}
        return self.model_copy(update=own)

    def targets(self) -> Mapping[str, Targets]:
        """Every class by name, as the scheduler takes it; the default class first."""
        known = {each.name: _targets(each) for each in self.classes}
        known = known or {DEFAULT_CLASS: Targets(DEFAULT_CLASS)}
        default = self.default_class or next(iter(known))
        return {default: known.pop(default), **known}

    def step_model(self) -> StepTime:
        """Duration of the engine's steps until it is measured."""
        seconds = self.engine.step_seconds
        return DEFAULT_STEP_TIME if seconds is None else _step_model(seconds)

    def step_factors(self) -> StepFactors:
        """By which earlier measurements differ from that."""
        factors = self.engine.step_factors
        return UNCORRECTED if factors is None else StepFactors(factors.prefill, factors.decode)

    def options(self) -> Options:
        """The scheduler's options."""
        scheduling = self.scheduling
        return Options(scheduling.policy, scheduling.max_queued_requests, self.engine.max_num_seqs)


def _targets(each: SidecarClass) -> Targets:
    reject_late = each.on_deadline == "Reject"
    return Targets(each.name, each.priority, each.ttft_s, each.tpot_s, each.e2e_s, reject_late)


def _step_model(seconds: SidecarStepSeconds) -> StepTime:
    return StepTime(
        seconds.floor, seconds.per_prefill_token, seconds.per_kv_token, seconds.per_sequence, seconds.overhead
    )


class LoadedConfig(NamedTuple):
    """A checked configuration, and the file that it came from."""

    config: SidecarConfig
    digest: str
    """Of the file's content."""


def load(path: Path) -> SidecarConfig:
    """Read and check the file. Raises BadInput that names the field, or the file if it cannot be read."""
    return load_with_digest(path).config


def load_with_digest(path: Path) -> LoadedConfig:
    """The same, with the digest of the content that was read."""
    content = _read(path)
    return LoadedConfig(_parse(SidecarConfig, content, path), content_digest(content))


def load_engine(path: Path) -> EngineDocument:
    """Read and check the pod's own file. Raises BadInput as `load` does."""
    return _parse(EngineDocument, _read(path), path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}") from error


def _parse(model: type[T], content: bytes, path: Path) -> T:
    try:
        document: Any = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(str(path), f"is not YAML: {' '.join(str(error).split())}") from error
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadInput(_where(first["loc"]) or path.name, first["msg"].removeprefix("Value error, ")) from error


def _where(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


class ConfigFile:
    """The file and its changes. A ConfigMap volume swaps a symbolic link, so the resolved path is compared.

    `pod`: the content of the pod's own file, where there is one.
    """

    def __init__(self, path: Path, pod: EngineDocument | None = None) -> None:
        self._path = path
        self._pod = pod
        self._seen = self._version()
        self.current, self.digest = self._load()
        self.error: BadInput | None = None

    def poll(self) -> bool:
        """Whether `current` is a new configuration. A bad file sets `error` and leaves `current` as it is."""
        version = self._version()
        if version == self._seen:
            return False
        self._seen = version
        try:
            self.current, self.digest = self._load()
        except BadInput as error:
            self.error = error
            return False
        self.error = None
        return True

    def _load(self) -> LoadedConfig:
        loaded = load_with_digest(self._path)
        return loaded if self._pod is None else loaded._replace(config=loaded.config.of_pod(self._pod))

    def _version(self) -> tuple[str, int, int, int] | None:
        try:
            real = os.path.realpath(self._path)
            status = os.stat(real)
        except OSError:
            return None
        return real, status.st_ino, status.st_mtime_ns, status.st_size
