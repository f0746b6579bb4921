"""The sidecar's configuration file, and how its changes are found.

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
from pathlib import Path

import yaml
from pydantic import ValidationError

from uellm.api.sidecar_document import DEFAULT_CLASS, SidecarClass, SidecarDocument, SidecarStepSeconds
from uellm.errors import BadInput
from uellm.sidecar.scheduling import DEFAULT_STEP_TIME, Options, Targets
from uellm.step_time import StepTime


class SidecarConfig(SidecarDocument):
    """The document as the scheduler takes it."""

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


def load(path: Path) -> SidecarConfig:
    """Read and check the file. Raises BadInput that names the field, or the file if it cannot be read."""
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
    """The file and its changes. A ConfigMap volume swaps a symbolic link, so the resolved path is compared."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._version()
        self.current = load(path)
        self.error: BadInput | None = None

    def poll(self) -> bool:
        """Whether `current` is a new configuration. A bad file sets `error` and leaves `current` as it is."""
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
