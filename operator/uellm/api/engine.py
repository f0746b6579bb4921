"""The engine's container and pod: its arguments, environment and resources, and the template merged over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator
from pydantic_core import PydanticCustomError

from uellm.api.base import ATOMIC, PRESERVED, MapBy, Model, ValidationRule
from uellm.api.scalars import Duration, Quantity, duration_s


class EnvVar(Model):
    """An environment variable."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """Name of the variable."""
    value: Annotated[str, StringConstraints(max_length=4096)] = ""
    """Its value."""


_NO_GPUS = ValidationRule(
    cel="self.all(name, !name.startsWith('nvidia.com/'))",
    holds=lambda resources: not any(name.startswith("nvidia.com/") for name in resources),
    message="must not contain GPUs, because the plan sets their number: pin it by spec.placement.gpus",
)
ResourceList = Annotated[dict[str, Quantity], Field(max_length=16), _NO_GPUS]


class Resources(Model):
    """Resources of the engine's container other than GPUs."""

    requests: ResourceList | None = None
    """Requests of the container."""
    limits: ResourceList | None = None
    """Limits of the container."""


class EngineSpec(Model):
    """The engine's container, in short form. `template` sets everything else."""

    image: Annotated[str | None, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$", max_length=512)] = None
    """Image with vLLM; the operator's default where not set."""
    args: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=1024)], ...],
        Field(max_length=64, json_schema_extra=dict(ATOMIC)),
    ] = ()
    """Further arguments of `vllm serve`. They override the planner's and are shown in the plan."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64), MapBy("name")] = ()
    """Further environment variables."""
    resources: Resources | None = None
    """Memory, CPU and storage of the container."""
    startup_timeout: Duration = "30m"
    """Time that the engine may take to load the model and answer; after that it is restarted."""

    @property
    def startup_timeout_s(self) -> float:
        """The startup timeout in seconds."""
        return duration_s(self.startup_timeout)


_EXPRESSIONS: list[Any] = [{"values": []}]
_SCHEDULING: Mapping[str, Any] = {
    "nodeSelector": {},
    "tolerations": [{}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": _EXPRESSIONS, "matchFields": _EXPRESSIONS}]
            }
        }
    },
}
"""The form of the part of a pod's spec by which nodes are chosen: maps, and lists with the form of their elements."""


def _check_form(value: Any, form: Any, path: str) -> None:
    """Raises PydanticCustomError with the path of what is not of this form."""
    if not isinstance(value, type(form)):
        message = f"must be a {'map' if isinstance(form, dict) else 'list'}, as in the spec of a pod"
        raise PydanticCustomError("rule", "{message}", {"message": message, "field": path})
    if isinstance(form, dict):
        for name, inner in form.items():
            if value.get(name) is not None:
                _check_form(value[name], inner, f"{path}.{name}")
    elif form:
        for place, each in enumerate(value):
            _check_form(each, form[0], f"{path}[{place}]")


class PodTemplate(Model):
    """A pod template that is merged over the operator's. Containers are matched by name (`engine`, `sidecar`)."""

    metadata: Annotated[dict[str, Any] | None, Field(max_length=8, json_schema_extra=dict(PRESERVED))] = None
    """Labels and annotations of the pods."""
    spec: Annotated[dict[str, Any] | None, Field(max_length=64, json_schema_extra=dict(PRESERVED))] = None
    """Part of a pod's spec: nodeSelector, tolerations, volumes, imagePullSecrets and so on."""

    @field_validator("spec")
    @classmethod
    def _scheduling_can_be_read(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """The API server judges the merged template. What the planner reads before that must have a form to read."""
        _check_form(value or {}, _SCHEDULING, "")
        return value
