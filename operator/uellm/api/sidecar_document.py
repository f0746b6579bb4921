"""`sidecar.yaml` and `engine.yaml`: what the operator publishes for the sidecar.

`sidecar.yaml` is about the service and is reloaded. `engine.yaml` is about one pod and its engine, which it is started
with: it takes the place of the sections `model`, `engine` and `auth` of `sidecar.yaml`, which a sidecar without a
cluster is given in one file.

The operator writes the documents and the sidecar reads them, and either may be the newer one. So unknown keys are
ignored, only `classes` is required, and `version` changes only where an older sidecar would misread a document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, model_validator

from uellm.api.base import Model
from uellm.api.http import HttpRoute, HttpSpec
from uellm.api.llmservice import Scheduling
from uellm.api.slo import ServiceClass
from uellm.step_time import LEAST_FACTOR, MOST_FACTOR

VERSION = 1
DEFAULT_CLASS = "default"
_DIGEST_LENGTH = 16

_LENIENT = ConfigDict(extra="ignore")


class SidecarClass(ServiceClass):
    """A class as in `spec.slo.classes`."""

    model_config = _LENIENT


class SidecarQueue(Scheduling):
    """Order and limit of the queue, as in `spec.scheduling`."""

    model_config = _LENIENT


_Seconds = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]


class SidecarStepSeconds(Model):
    """The time of one engine step, in seconds: max(floor, perPrefillToken * prompt tokens) + perKvToken * KV tokens +
    perSequence * sequences + overhead."""

    model_config = _LENIENT

    floor: _Seconds
    """Time to read the weights."""
    per_prefill_token: Annotated[_Seconds, Field(gt=0)]
    """Time for each prompt token."""
    per_kv_token: _Seconds
    """Time for each token of KV cache that is read."""
    per_sequence: _Seconds
    """Time for each sequence."""
    overhead: _Seconds
    """Fixed time."""

    @model_validator(mode="after")
    def _takes_time(self) -> SidecarStepSeconds:
        if self.floor + self.overhead <= 0:
            raise ValueError("floor and overhead are both 0: a step takes some time")
        return self


_Factor = Annotated[float, Field(ge=LEAST_FACTOR, le=MOST_FACTOR, allow_inf_nan=False)]


class SidecarStepFactors(Model):
    """By which earlier measurements of such an engine differ from `stepSeconds`."""

    model_config = _LENIENT

    prefill: _Factor = 1.0
    """On what prompts add to a step."""
    decode: _Factor = 1.0
    """On the rest."""


class StepBasisDocument(Model):
    """What `stepSeconds` were predicted for. The operator reads it back; the sidecar ignores it."""

    model_config = _LENIENT

    model: str
    """Digest of the model, its engine's arguments and the calibration."""
    product: str
    """The GPU."""
    memory_bytes: int
    """Its memory."""
    flops_per_second: float
    """Its compute rate."""
    memory_bytes_per_second: float
    """Its memory bandwidth."""
    tensor: int
    """GPUs that share a layer."""
    pipeline: int
    """Stages."""


EngineTask = Literal["Generate", "Embed", "Score", "Transcribe"]


class SidecarEngine(Model):
    """The sidecar's information about the engine."""

    model_config = _LENIENT

    max_num_seqs: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Sequences that it runs at once, vLLM's `--max-num-seqs`: at most this many requests are sent to it."""
    max_num_batched_tokens: Annotated[int | None, Field(ge=1, le=100_000_000)] = None
    """Tokens that it computes in one step, vLLM's `--max-num-batched-tokens`."""
    task: EngineTask = "Generate"
    """What it is started for: its smallest request shows whether it makes progress."""
    accepts_priority: bool = False
    """Whether it runs with `--scheduling-policy priority`; if so, requests carry their deadline as priority."""
    loads_adapters: bool = False
    """Whether it was started with room for LoRA adapters, which the sidecar then loads and unloads."""
    step_seconds: SidecarStepSeconds | None = None
    """Step times until they are measured; where not set, roughly those of an 8B model on one GPU."""
    step_factors: SidecarStepFactors | None = None
    """By which earlier measurements differ from them."""


class SidecarAuth(Model):
    """Who may send requests."""

    model_config = _LENIENT

    keys_directory: Path | None = None
    """Directory of API key files with one key per line; where not set, no key is required."""


class SidecarPrediction(Model):
    """How answer lengths are predicted."""

    model_config = _LENIENT

    learned: bool = False
    """Whether to use a learned model as well, in its own process. It needs the extra `predictor` and 110 MB."""


class SidecarRoute(HttpRoute):
    """As in `spec.http.routes`."""

    model_config = _LENIENT


class SidecarHttp(HttpSpec):
    """Connections and bodies, as in `spec.http`."""

    model_config = _LENIENT

    routes: Annotated[tuple[SidecarRoute, ...], Field(max_length=64)] = ()
    """Other limits for single routes."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may read the sidecar's own answers, as the engine's `--allowed-origins`."""
    allow_credentials: bool = False
    """Whether they may send cookies, as the engine's `--allow-credentials`."""


class SidecarAdapter(Model):
    """A LoRA adapter that the engine is to serve: in a directory of its container, or on the hub."""

    model_config = _LENIENT

    name: str
    """In requests."""
    source: str = ""
    """Its URI, with `@` and the revision where it is on a hub. The operator reads it back."""
    path: str = ""
    """Its directory in the engine's container; empty where it is on a hub."""
    repository: str = ""
    """`owner/name` on the hub."""
    commit: str = ""
    """What is downloaded of it."""

    def to_dict(self) -> dict[str, Any]:
        """The entry, without what is empty."""
        return {name: value for name, value in super().to_dict().items() if value}


class SidecarRevisionAdapters(Model):
    """The LoRA adapters of the pods of one revision, while it takes the place of another one."""

    model_config = _LENIENT

    revision: str
    """Its name."""
    adapters: Annotated[tuple[SidecarAdapter, ...], Field(max_length=256)] = ()
    """What its pods serve in place of `adapters`."""


class ToldAdapters(NamedTuple):
    """Which LoRA adapters the sidecars of a service are told of."""

    adapters: tuple[SidecarAdapter, ...] = ()
    """In pods of every revision that is not named below."""
    of_revisions: tuple[SidecarRevisionAdapters, ...] = ()
    """In pods of one revision."""

    def of(self, revision: str) -> tuple[SidecarAdapter, ...]:
        """Those of a pod of the revision."""
        return next((each.adapters for each in self.of_revisions if each.revision == revision), self.adapters)


NO_ADAPTERS = ToldAdapters()


class EngineDocument(Model):
    """`engine.yaml`."""

    model_config = _LENIENT

    version: Annotated[int, Field(ge=1)] = VERSION
    """Version of the format."""
    revision: str = ""
    """Name of the revision that the pod was started from; the sidecar reports it."""
    model: str = ""
    """The model's served name, for the metrics."""
    engine: SidecarEngine = SidecarEngine()
    """The engine."""
    auth: SidecarAuth = SidecarAuth()
    """Who may send requests."""
    step_basis: StepBasisDocument | None = None
    """What the engine's `stepSeconds` were predicted for."""

    def to_dict(self) -> dict[str, Any]:
        """The document, without what was not set in its sections, and without empty ones."""
        return _sparse(super().to_dict(), self, ("engine", "auth"), optional=("revision", "auth", "stepBasis"))


class SidecarDocument(Model):
    """The whole document."""

    model_config = _LENIENT

    version: Annotated[int, Field(ge=1)] = VERSION
    """Version of the format."""
    model: str = ""
    """The model's served name, for the metrics."""
    classes: Annotated[tuple[SidecarClass, ...], Field(max_length=64)]
    """SLO classes. If empty, there is one class `default` without targets."""
    default_class: str | None = None
    """Class of requests that name none; the first where not set."""
    scheduling: SidecarQueue = SidecarQueue()
    """The queue."""
    engine: SidecarEngine = SidecarEngine()
    """The engine."""
    service: str = ""
    """Namespace and name of the LLMService. What the gateway means for another one is refused."""
    adapters: Annotated[tuple[SidecarAdapter, ...], Field(max_length=256)] = ()
    """LoRA adapters, where the engine has room for them."""
    revision_adapters: Annotated[tuple[SidecarRevisionAdapters, ...], Field(max_length=64)] = ()
    """Those of pods of single revisions, in place of `adapters`."""
    http: SidecarHttp = SidecarHttp()
    """Connections and bodies."""
    auth: SidecarAuth = SidecarAuth()
    """Who may send requests."""
    prediction: SidecarPrediction = SidecarPrediction()
    """How answer lengths are predicted."""
    allowed_routes: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Administrative routes of the engine to serve nevertheless, such as `/sleep`."""

    @model_validator(mode="after")
    def _names_agree(self) -> SidecarDocument:
        names = [each.name for each in self.classes] or [DEFAULT_CLASS]
        if len(set(names)) < len(names):
            raise ValueError("two classes have the same name")
        if self.default_class is not None and self.default_class not in names:
            raise ValueError(f"defaultClass {self.default_class!r} is not one of the classes {', '.join(names)}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The document without empty sections and without unset fields in its sections."""
        optional = ("model", "engine", "service", "adapters", "revisionAdapters", "http", "auth", "prediction")
        document = {
            **super().to_dict(),
            "adapters": [each.to_dict() for each in self.adapters],
            "revisionAdapters": [
                {"revision": each.revision, "adapters": [adapter.to_dict() for adapter in each.adapters]}
                for each in self.revision_adapters
            ],
        }
        return _sparse(document, self, ("engine", "http", "auth", "prediction"), optional=(*optional, "allowedRoutes"))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises pydantic's ValidationError."""
        return cls.model_validate(document)


def content_digest(content: bytes) -> str:
    """Digest of `sidecar.yaml`, by which the operator recognises that a sidecar has it in force."""
    return hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]


def _sparse(
    document: dict[str, Any], model: Model, sections: tuple[str, ...], *, optional: tuple[str, ...]
) -> dict[str, Any]:
    for section in sections:
        part: Model = getattr(model, section)
        document[section] = part.model_dump(by_alias=True, exclude_none=True, exclude_unset=True, mode="json")
    return {name: value for name, value in document.items() if value or name not in optional}
