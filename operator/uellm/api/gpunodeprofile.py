"""GPUNodeProfile: the GPUs of one node, as the profiler found and measured them. Its name is the node's."""

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
    """A device that the user excludes."""

    uuid: DeviceUuid
    """UUID of the device."""
    reason: Sentence = ""
    """Reason for the exclusion."""


class GPUNodeProfileSpec(Model):
    """The user's settings for the node."""

    excluded_devices: Annotated[tuple[ExcludedDevice, ...], Field(max_length=64), MapBy("uuid")] = ()
    """Devices that no plan may use."""


class DeviceHealth(StatusModel):
    """Whether the device may be used."""

    state: Literal["Healthy", "Quarantined"] = "Healthy"
    """State of the device. No plan uses a device that is Quarantined."""
    reason: Text | None = None
    """The cause in one word."""
    message: Sentence | None = None
    """The cause in a sentence."""
    since: Timestamp | None = None
    """When the state last changed."""


class Measured(StatusModel):
    """The device's measured performance. Missing figures were not measured."""

    bf16_gigaflops_per_second: Gigaflops = None
    """Throughput of matrix products in bfloat16."""
    fp16_gigaflops_per_second: Gigaflops = None
    """Throughput of matrix products in float16."""
    fp8_gigaflops_per_second: Gigaflops = None
    """Throughput of matrix products in FP8 (E4M3)."""
    memory_bytes_per_second: BytesPerSecond = None
    """Bandwidth of the device's memory, read and written."""
    measured_at: Timestamp | None = None
    """Time of the measurement."""


class Allocation(StatusModel):
    """The pod that has the device, as the kubelet reports it."""

    pod_uid: Annotated[str, StringConstraints(max_length=64), Field(alias="podUID")]
    """UID of the pod."""


class DeviceProfile(StatusModel):
    """One GPU."""

    index: Annotated[int, Field(ge=0, le=1023)] = 0
    """Index that the driver assigns."""
    uuid: DeviceUuid
    """UUID that the driver assigns."""
    product: Text = ""
    """Product name."""
    compute_capability: Annotated[str | None, StringConstraints(max_length=16)] = None
    """CUDA compute capability, as in `9.0`."""
    memory_bytes: Bytes
    """Total memory."""
    memory_free_bytes: Bytes | None = None
    """Memory that is free at the moment."""
    numa_node: Annotated[int | None, Field(ge=-1, le=1023)] = None
    """NUMA node that the device is attached to; -1 where unknown."""
    pci_bus_id: Annotated[str | None, StringConstraints(max_length=32)] = None
    """Address on the PCI bus."""
    resource_name: Annotated[str, StringConstraints(max_length=317)] = GPU_RESOURCE
    """Extended resource by which pods request it."""
    mig: bool = False
    """Whether it is a MIG slice of a GPU."""
    power_limit_watts: Annotated[int | None, Field(ge=0, le=100_000)] = None
    """Power limit."""
    health: DeviceHealth | None = None
    """Whether it may be used."""
    measured: Measured | None = None
    """Measured performance."""
    allocated_to: Allocation | None = None
    """The pod that has it; not set while it is free."""


class LinkProfile(StatusModel):
    """The link from one device to another, in that direction."""

    a: DeviceUuid
    """The device that sends."""
    b: DeviceUuid
    """The device that receives."""
    kind: LinkKind = "SYS"
    """Kind of the link, in the terms of `nvidia-smi topo -m`."""
    bytes_per_second: BytesPerSecond = None
    """Throughput of large copies."""
    latency_nanoseconds: Annotated[int | None, Field(ge=0, le=10**10)] = None
    """Duration of the smallest copy."""


class ProfileSummary(StatusModel):
    """A summary of the node's GPUs for the printer columns."""

    gpus: Text | None = None
    """Number of GPUs."""
    free: Text | None = None
    """Number of GPUs that are healthy and not allocated."""
    products: Text | None = None
    """Products, each with its count."""


class GPUNodeProfileStatus(StatusModel):
    """What the profiler found on the node."""

    observed_at: Timestamp | None = None
    """When the profiler last observed the node."""
    source: Literal["NVML", "Simulated"] = "NVML"
    """NVML: read from the driver; Simulated: read from a description."""
    driver_version: Annotated[str | None, StringConstraints(max_length=64)] = None
    """Version of the GPU driver."""
    cuda_version: Annotated[str | None, StringConstraints(max_length=64)] = None
    """Newest CUDA version that the driver supports."""
    profiler_version: Annotated[str | None, StringConstraints(max_length=64)] = None
    """Version of the profiler."""
    summary: ProfileSummary | None = None
    """Summary of the GPUs."""
    devices: Annotated[tuple[DeviceProfile, ...], Field(max_length=64), MapBy("uuid")] = ()
    """The node's GPUs."""
    links: Annotated[tuple[LinkProfile, ...], Field(max_length=4096, json_schema_extra=dict(ATOMIC))] = ()
    """The links between them."""
    conditions: Conditions = ()
    """Aspects of the profile's state."""


class GPUNodeProfile(Model):
    """The GPUs of a node: what they are, how fast they are, and which pod has each."""

    api_version: Literal["uellm.io/v1alpha1"] = "uellm.io/v1alpha1"
    """Version of this schema."""
    kind: Literal["GPUNodeProfile"] = "GPUNodeProfile"
    """Kind of the resource."""
    metadata: dict[str, Any]
    """Standard metadata. The name is the node's."""
    spec: GPUNodeProfileSpec = Field(default_factory=GPUNodeProfileSpec)
    """The user's settings for the node."""
    status: GPUNodeProfileStatus | None = None
    """What the profiler found."""
