"""The sidecar's configuration file, and following its changes.

    {model, classes: [{name, priority, ttft, tpot, e2e, onDeadline}], defaultClass,
     scheduling: {policy, maxQueuedRequests, predictor}, auth: {keysDirectory}, allowedRoutes: [/sleep],
     engine: {maxNumSeqs, maxNumBatchedTokens, acceptsPriority,
              stepSeconds: {floor, perPrefillToken, perKvToken, perSequence, overhead}}, prediction: {learned: false}}

Only `classes` is required; an empty list means one class `default` without targets. Keys that this version does
not know are passed over, for the operator that writes the file may be newer than the sidecar that reads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from uellm.api import Scheduling, ServiceClass
from uellm.api.base import Model
from uellm.errors import BadInput
from uellm.sidecar.scheduling import Options, StepModel, Targets

DEFAULT_CLASS = "default"

_LENIENT = ConfigDict(extra="ignore")


class SLOClass(ServiceClass):
    """A class as in `spec.slo.classes`."""

    model_config = _LENIENT

    def targets(self) -> Targets:
        """The class as the scheduler takes it."""
        reject_late = self.on_deadline == "Reject"
        return Targets(self.name, self.priority, self.ttft_s, self.tpot_s, self.e2e_s, reject_late)


class QueueConfig(Scheduling):
    """Order of the queue and its bound, as in `spec.scheduling`."""

    model_config = _LENIENT


_Seconds = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]


class StepSeconds(Model):
    """A step's time as in an engine's file: max(floor, perPrefillToken * prompt tokens) + perKvToken * KV tokens +
    perSequence * sequences + overhead, in seconds."""

    model_config = _LENIENT

    floor: _Seconds
    per_prefill_token: Annotated[_Seconds, Field(gt=0)]
    per_kv_token: _Seconds
    per_sequence: _Seconds
    overhead: _Seconds

    @model_validator(mode="after")
    def _takes_time(self) -> StepSeconds:
        if self.floor + self.overhead <= 0:
            raise ValueError("floor and overhead are both 0: a step takes some time")
        return self

    def model(self) -> StepModel:
        """As the scheduler takes it."""
        return StepModel(self.floor, self.per_prefill_token, self.per_kv_token, self.per_sequence, self.overhead)


class EngineConfig(Model):
    """What the sidecar must know of the engine."""

    model_config = _LENIENT

    max_num_seqs: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Sequences that it runs at once, vLLM's `--max-num-seqs`: no more requests than these are sent to it."""
    accepts_priority: bool = False
    """It was started with `--scheduling-policy priority`: requests tell it their deadlines."""
    max_num_batched_tokens: Annotated[int | None, Field(ge=1, le=100_000_000)] = None
    """Tokens that it computes in a step, vLLM's `--max-num-batched-tokens`."""
    step_seconds: StepSeconds | None = None
    """What its steps take until that is measured; not set: about an 8B model on one GPU."""


class AuthConfig(Model):
    """Who may ask."""

    model_config = _LENIENT

    keys_directory: Path | None = None
    """Where the API keys' files are, one key a line; not set: no key is asked for."""


class PredictionConfig(Model):
    """How answers' lengths are predicted, where they are."""

    model_config = _LENIENT

    learned: bool = False
    """Ask a learned model too, in a process of its own: needs the extra `predictor`, and 110 MB."""


class SidecarConfig(Model):
    """The whole file."""

    model_config = _LENIENT

    model: str = ""
    """The model's served name, for the metrics."""
    classes: Annotated[tuple[SLOClass, ...], Field(max_length=64)]
    """SLO classes; empty for one class `default` without targets."""
    default_class: str | None = None
    """Class of requests that name none; the first where not set."""
    scheduling: QueueConfig = QueueConfig()
    """The queue."""
    engine: EngineConfig = EngineConfig()
    """The engine."""
    auth: AuthConfig = AuthConfig()
    """Who may ask."""
    prediction: PredictionConfig = PredictionConfig()
    """How answers' lengths are predicted."""
    allowed_routes: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Administrative routes of the engine, such as `/sleep`, that are served nevertheless."""

    @model_validator(mode="after")
    def _names_agree(self) -> SidecarConfig:
        names = [slo_class.name for slo_class in self.classes] or [DEFAULT_CLASS]
        if len(set(names)) < len(names):
            raise ValueError("two classes have the same name")
        if self.default_class is not None and self.default_class not in names:
            raise ValueError(f"defaultClass {self.default_class!r} is none of the classes {', '.join(names)}")
        return self

    def targets(self) -> Mapping[str, Targets]:
        """Every class by name, as the scheduler takes it; the default one first."""
        known = {slo_class.name: slo_class.targets() for slo_class in self.classes}
        known = known or {DEFAULT_CLASS: Targets(DEFAULT_CLASS)}
        default = self.default_class or next(iter(known))
        return {default: known.pop(default), **known}

    def step_model(self) -> StepModel:
        """What the engine's steps take until that is measured."""
        told = self.engine.step_seconds
        return StepModel() if told is None else told.model()

    def options(self) -> Options:
        """Order of the queue, bounds of gate and queue."""
        scheduling = self.scheduling
        return Options(scheduling.policy, scheduling.max_queued_requests, self.engine.max_num_seqs)


def load(path: Path) -> SidecarConfig:
    """Read and check the file. Raises BadInput that names the field, or the file where it cannot be read at all."""
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(str(path), f"is not YAML: {' '.join(str(error).split())}") from error
    try:
        return SidecarConfig.model_validate(document)
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
