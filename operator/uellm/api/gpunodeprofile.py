"""GPUNodeProfile: the GPUs of one node, as the profiler found and measured them. It has its node's name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from uellm.api.base import ATOMIC, MapBy, Model, StatusModel
from uellm.api.conditions import Conditions
from uellm.api.scalars import Bytes, DeviceUuid, Sentence, Text, Timestamp
from uellm.hardware import GPU_RESOURCE, LinkKind

Gigaflops = Annotated[int | None, Field(ge=1, le=10**9)]
BytesPerSecond = Annotated[int | None, Field(ge=1, le=2**50)]


class ExcludedDevice(Model):
    """A device that a person takes out of use."""

    uuid: DeviceUuid
    """The device."""
    reason: Sentence = ""
    """Why."""


class GPUNodeProfileSpec(Model):
    """A person's word about the node."""

    excluded_devices: Annotated[tuple[ExcludedDevice, ...], Field(max_length=64), MapBy("uuid")] = ()
    """Devices that no plan may use."""


class DeviceHealth(StatusModel):
    """Whether the device may be used."""

    state: Literal["Healthy", "Quarantined"] = "Healthy"
    """Quarantined: no plan uses it."""
    reason: Text | None = None
    """The cause in one word."""
    message: Sentence | None = None
    """The cause in a sentence."""
    since: Timestamp | None = None
    """When the state last changed."""


class Measured(StatusModel):
    """What the device was measured to do; what is missing was not measured."""

    bf16_gigaflops_per_second: Gigaflops = None
    """Matrix products in bfloat16."""
    fp16_gigaflops_per_second: Gigaflops = None
    """Matrix products in float16."""
    memory_bytes_per_second: BytesPerSecond = None
    """Reading and writing its own memory."""
    measured_at: Timestamp | None = None
    """When."""


class Allocation(StatusModel):
    """Who has the device, as the kubelet says."""

    pod_uid: Annotated[str, StringConstraints(max_length=64), Field(alias="podUID")]
    """UID of the pod."""


class DeviceProfile(StatusModel):
    """One GPU."""

    index: Annotated[int, Field(ge=0, le=1023)] = 0
    """The driver's number for it."""
    uuid: DeviceUuid
    """The driver's identity for it."""
    product: Text = ""
    """Product name."""
    compute_capability: Annotated[str | None, StringConstraints(max_length=16)] = None
    """CUDA compute capability, as in `9.0`."""
    memory_bytes: Bytes
    """All its memory."""
    memory_free_bytes: Bytes | None = None
    """Memory that nobody uses at the moment."""
    numa_node: Annotated[int | None, Field(ge=-1, le=1023)] = None
    """The processor socket's memory that it is near to; -1 where unknown."""
    pci_bus_id: Annotated[str | None, StringConstraints(max_length=32)] = None
    """Its place on the PCI bus."""
    resource_name: Annotated[str, StringConstraints(max_length=317)] = GPU_RESOURCE
    """The resource by which pods ask for it."""
    mig: bool = False
    """True for a slice of a GPU."""
    power_limit_watts: Annotated[int | None, Field(ge=0, le=100_000)] = None
    """The power that it may draw."""
    health: DeviceHealth | None = None
    """Whether it may be used."""
    measured: Measured | None = None
    """What it was measured to do."""
    allocated_to: Allocation | None = None
    """Who has it; nobody where not set."""


class LinkProfile(StatusModel):
    """The way from one device to another, in that direction."""

    a: DeviceUuid
    """From."""
    b: DeviceUuid
    """To."""
    kind: LinkKind = "SYS"
    """What lies between, in nvidia-smi's words."""
    bytes_per_second: BytesPerSecond = None
    """Throughput of large copies."""
    latency_nanoseconds: Annotated[int | None, Field(ge=0, le=10**10)] = None
    """Time of the smallest copy."""


class ProfileSummary(StatusModel):
    """The node's GPUs in a line, for the printer columns."""

    gpus: Text | None = None
    """How many there are."""
    free: Text | None = None
    """How many of them are healthy and nobody's."""
    products: Text | None = None
    """Which products, each with its count."""


class GPUNodeProfileStatus(StatusModel):
    """What was found on the node."""

    observed_at: Timestamp | None = None
    """When the profiler last looked."""
    source: Literal["NVML", "Simulated"] = "NVML"
    """NVML: asked of the driver; Simulated: read from a description."""
    driver_version: Annotated[str | None, StringConstraints(max_length=64)] = None
    """Version of the GPU driver."""
    cuda_version: Annotated[str | None, StringConstraints(max_length=64)] = None
    """Newest CUDA that the driver supports."""
    profiler_version: Annotated[str | None, StringConstraints(max_length=64)] = None
    """Version of the profiler."""
    summary: ProfileSummary | None = None
    """The GPUs in a line."""
    devices: Annotated[tuple[DeviceProfile, ...], Field(max_length=64), MapBy("uuid")] = ()
    """The node's GPUs."""
    links: Annotated[tuple[LinkProfile, ...], Field(max_length=4096, json_schema_extra=dict(ATOMIC))] = ()
    """The ways between them."""
    conditions: Conditions = ()
    """Aspects of the profile's state."""


class GPUNodeProfile(Model):
    """The GPUs of a node: what they are, what they can do, who has them."""

    api_version: Literal["uellm.io/v1alpha1"] = "uellm.io/v1alpha1"
    """Version of this schema."""
    kind: Literal["GPUNodeProfile"] = "GPUNodeProfile"
    """Kind of the resource."""
    metadata: dict[str, Any]
    """The usual metadata; the name is the node's."""
    spec: GPUNodeProfileSpec = Field(default_factory=GPUNodeProfileSpec)
    """A person's word about the node."""
    status: GPUNodeProfileStatus | None = None
    """What was found there."""
