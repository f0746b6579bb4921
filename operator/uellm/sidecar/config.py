"""The sidecar's configuration file, and how its changes are found.

    {model, classes: [{name, priority, ttft, tpot, e2e, onDeadline}], defaultClass,
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
    """Duration of a step as in an engine's file: max(floor, perPrefillToken * prompt tokens) + perKvToken * KV tokens +
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
            raise ValueError("floor and overhead are both 0: a step takes time, so set one of them")
        return self

    def model(self) -> StepModel:
        """As the scheduler takes it."""
        return StepModel(self.floor, self.per_prefill_token, self.per_kv_token, self.per_sequence, self.overhead)


class EngineConfig(Model):
    """What the sidecar needs to know about the engine."""

    model_config = _LENIENT

    max_num_seqs: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Sequences that it runs at once, vLLM's `--max-num-seqs`; the sidecar sends no more requests than this."""
    accepts_priority: bool = False
    """It was started with `--scheduling-policy priority`: requests carry their deadline as `priority`."""
    max_num_batched_tokens: Annotated[int | None, Field(ge=1, le=100_000_000)] = None
    """Tokens that it computes in one step, vLLM's `--max-num-batched-tokens`."""
    step_seconds: StepSeconds | None = None
    """Duration of its steps until it is measured; default: about an 8B model on one GPU."""


class AuthConfig(Model):
    """Who may send requests."""

    model_config = _LENIENT

    keys_directory: Path | None = None
    """Directory of files with API keys, one key per line; not set: no key is required."""


class PredictionConfig(Model):
    """How output lengths are predicted, if they are."""

    model_config = _LENIENT

    learned: bool = False
    """Also use a learned model, in its own process; needs the extra `predictor` and 110 MB of memory."""


class SidecarConfig(Model):
    """The whole file."""

    model_config = _LENIENT

    model: str = ""
    """The model's served name, for the metrics."""
    classes: Annotated[tuple[SLOClass, ...], Field(max_length=64)]
    """SLO classes; empty for one class `default` without targets."""
    default_class: str | None = None
    """Class of requests that name none; default: the first class."""
    scheduling: QueueConfig = QueueConfig()
    """The queue."""
    engine: EngineConfig = EngineConfig()
    """The engine."""
    auth: AuthConfig = AuthConfig()
    """Who may send requests."""
    prediction: PredictionConfig = PredictionConfig()
    """How output lengths are predicted."""
    allowed_routes: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Administrative routes of the engine, such as `/sleep`, that the sidecar serves."""

    @model_validator(mode="after")
    def _names_agree(self) -> SidecarConfig:
        names = [slo_class.name for slo_class in self.classes] or [DEFAULT_CLASS]
        if len(set(names)) < len(names):
            raise ValueError("two classes have the same name")
        if self.default_class is not None and self.default_class not in names:
            raise ValueError(f"defaultClass {self.default_class!r} is none of the classes {', '.join(names)}")
        return self

    def targets(self) -> Mapping[str, Targets]:
        """Every class by name, as the scheduler takes it; the default class first."""
        known = {slo_class.name: slo_class.targets() for slo_class in self.classes}
        known = known or {DEFAULT_CLASS: Targets(DEFAULT_CLASS)}
        default = self.default_class or next(iter(known))
        return {default: known.pop(default), **known}

    def step_model(self) -> StepModel:
        """Duration of the engine's steps until it is measured."""
        given = self.engine.step_seconds
        return StepModel() if given is None else given.model()

    def options(self) -> Options:
        """The scheduler's options."""
        scheduling = self.scheduling
        return Options(scheduling.policy, scheduling.max_queued_requests, self.engine.max_num_seqs)


def load(path: Path) -> SidecarConfig:
    """Read and check the file. Raises BadInput that names the field, or the file if it cannot be read."""
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
