"""The sidecar's configuration file, and following its changes.

    {version, model, classes: [{name, priority, ttft, tpot, e2e, onDeadline}], defaultClass,
     scheduling: {policy, maxQueuedRequests, predictor}, auth: {keysDirectory}, allowedRoutes: [/sleep],
     engine: {maxNumSeqs, maxNumBatchedTokens, acceptsPriority,
              stepSeconds: {floor, perPrefillToken, perKvToken, perSequence, overhead}}, prediction: {learned: false}}

Only `classes` is required; an empty list means one class `default` without targets. Unknown keys are ignored, because
the operator that writes the file may be newer than the sidecar that reads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from uellm.api.sidecar_document import DEFAULT_CLASS, SidecarClass, SidecarDocument, SidecarStepSeconds
from uellm.errors import BadInput
from uellm.sidecar.scheduling import Options, StepModel, Targets


@dataclass(frozen=True)
class Bounds:
    """What the engine was told at its start, and does not report."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None


class SidecarConfig(SidecarDocument):
    """The document as the scheduler takes it."""

    def targets(self) -> Mapping[str, Targets]:
        """Every class by name; the default one first."""
        known = {each.name: _targets(each) for each in self.classes}
        known = known or {DEFAULT_CLASS: Targets(DEFAULT_CLASS)}
        default = self.default_class or next(iter(known))
        return {default: known.pop(default), **known}

    def bounds(self) -> Bounds:
        """What the engine was told at its start."""
        return Bounds(self.engine.max_num_seqs, self.engine.max_num_batched_tokens)

    def step_model(self) -> StepModel:
        """The engine's step times until they are measured."""
        seconds = self.engine.step_seconds
        return StepModel() if seconds is None else _step_model(seconds)

    def options(self) -> Options:
        """Order of the queue, bounds of gate and queue."""
        scheduling = self.scheduling
        return Options(scheduling.policy, scheduling.max_queued_requests, self.engine.max_num_seqs)


def _targets(each: SidecarClass) -> Targets:
    reject_late = each.on_deadline == "Reject"
    return Targets(each.name, each.priority, each.ttft_s, each.tpot_s, each.e2e_s, reject_late)


def _step_model(seconds: SidecarStepSeconds) -> StepModel:
    return StepModel(
        seconds.floor, seconds.per_prefill_token, seconds.per_kv_token, seconds.per_sequence, seconds.overhead
    )


def load(path: Path) -> SidecarConfig:
    """Read and check the file. Raises BadInput that names the field, or the file where it cannot be read at all."""
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(str(path), f"is not YAML: {' '.join(str(error).split())}") from error
    try:
        return SidecarConfig.from_dict(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadInput(_where(first["loc"]) or path.name, first["msg"].removeprefix("Value error, ")) from error


def _where(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


class ConfigFile:
    """The file through its versions. A ConfigMap's volume swaps a symbolic link: what is followed is the real path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._version()
        self.current = load(path)
        self.error: BadInput | None = None

    def poll(self) -> bool:
        """Whether `current` is a new configuration. A file that is bad leaves it as it was and is told by `error`."""
        version = self._version()
        if version == self._seen:
            return False
        self._seen = version
        try:
            self.current = load(self._path)
        except BadInput as error:
            self.error = error
            return False
        self.error = None
        return True

    def _version(self) -> tuple[str, int, int, int] | None:
        try:
            real = os.path.realpath(self._path)
            status = os.stat(real)
        except OSError:
            return None
        return real, status.st_ino, status.st_mtime_ns, status.st_size
