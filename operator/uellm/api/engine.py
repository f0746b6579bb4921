"""The engine's container and pod: its arguments, environment and resources, and the template merged over it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

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
    message="must not count GPUs, for the plan does: pin their number by spec.placement.gpus",
)
ResourceList = Annotated[dict[str, Quantity], Field(max_length=16), _NO_GPUS]


class Resources(Model):
    """Resources of the engine's container besides its GPUs."""

    requests: ResourceList | None = None
    """What the container asks for."""
    limits: ResourceList | None = None
    """What it may not exceed."""


class EngineSpec(Model):
    """The engine's container, in short; everything else goes into `template`."""

    image: Annotated[str | None, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$", max_length=512)] = None
    """Image with vLLM; the operator's own choice where not set."""
    args: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=1024)], ...],
        Field(max_length=64, json_schema_extra=dict(ATOMIC)),
    ] = ()
    """Further arguments of `vllm serve`; they win over the planner's and are shown in the plan."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64), MapBy("name")] = ()
    """Further environment variables."""
    resources: Resources | None = None
    """Memory, CPU and storage of the container."""
    startup_timeout: Duration = "30m"
    """How long the engine may take to load the model and answer before it is started again."""

    @property
    def startup_timeout_s(self) -> float:
        """The startup timeout in seconds."""
        return duration_s(self.startup_timeout)


class PodTemplate(Model):
    """A pod template that is merged over the operator's; containers go by name (`engine`, `sidecar`)."""

    metadata: Annotated[dict[str, Any] | None, Field(max_length=8, json_schema_extra=dict(PRESERVED))] = None
    """Labels and annotations of the pods."""
    spec: Annotated[dict[str, Any] | None, Field(max_length=64, json_schema_extra=dict(PRESERVED))] = None
    """Part of a pod's spec: nodeSelector, tolerations, volumes, imagePullSecrets and so on."""
