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
Lanes = Annotated[int | None, Field(ge=1, le=64)]
PcieGeneration = Annotated[int | None, Field(ge=1, le=15)]
Links = Annotated[int | None, Field(ge=0, le=64)]
ErrorCount = Annotated[int | None, Field(ge=0, le=2**50)]
Nanoseconds = Annotated[int | None, Field(ge=0, le=10**10)]
Megahertz = Annotated[int | None, Field(ge=0, le=100_000)]
MOST_DEVICES = 128
"""Of a node. Sixteen GPUs cut into seven slices each are 112 devices."""
Slowdown = Literal["Hardware", "HardwareThermal", "SoftwareThermal", "PowerBrake"]


class ExcludedDevice(Model):
    """A device that the user excludes."""

    uuid: DeviceUuid
    """UUID of the device."""
    reason: Sentence = ""
    """Reason for the exclusion."""


class GPUNodeProfileSpec(Model):
    """The user's settings for the node."""

    excluded_devices: Annotated[tuple[ExcludedDevice, ...], Field(max_length=MOST_DEVICES), MapBy("uuid")] = ()
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
    bf16_decode_gigaflops_per_second: Gigaflops = None
    """Throughput in bfloat16 as in decoding: 32 rows times a square matrix. For people; no plan reads it."""
    fp16_decode_gigaflops_per_second: Gigaflops = None
    """The same in float16."""
    fp8_decode_gigaflops_per_second: Gigaflops = None
    """The same in FP8 (E4M3)."""
    host_bytes_per_second: BytesPerSecond = None
    """Bandwidth of copies from the host's memory. For people; no plan reads it."""
    launch_nanoseconds: Nanoseconds = None
    """Duration of the smallest kernel, from its call until its end is known. For people; no plan reads it."""
    power_limit_watts: Annotated[int | None, Field(ge=0, le=100_000)] = None
    """Power limit during the measurement."""
    sm_clock_megahertz: Megahertz = None
    """Clock of the multiprocessors while they multiplied."""
    memory_clock_megahertz: Megahertz = None
    """Clock of the memory meanwhile."""
    measured_at: Timestamp | None = None
    """Time of the measurement."""


class Allocation(StatusModel):
    """The pod that has the device, as the kubelet reports it."""

    pod_uid: Annotated[str, StringConstraints(max_length=64), Field(alias="podUID")]
    """UID of the pod."""


class PcieLink(StatusModel):
    """The GPU's link to the PCIe bus, as far as the driver reports it."""

    width: Lanes = None
    """Lanes in use."""
    widest: Lanes = None
    """The most lanes that were in use since the profile exists, at this place on the bus."""
    max_width: Lanes = None
    """Lanes that the GPU and its slot have."""
    generation: PcieGeneration = None
    """Generation in use when the profile was written. An idle GPU lowers it to save power."""
    max_generation: PcieGeneration = None
    """Newest generation of the GPU and its slot."""


class NvLinks(StatusModel):
    """The GPU's NVLinks."""

    active: Links = None
    """How many are up."""
    most: Links = None
    """The most that were up since the profile exists, at this place on the bus."""
    switched: bool | None = None
    """Whether they lead to an NVSwitch."""


class Fabric(StatusModel):
    """The GPU's place in the fabric of its NVSwitches. CUDA does not start before it is complete."""

    state: Literal["NotStarted", "InProgress", "Completed"] | None = None
    """How far the fabric manager has come with it."""
    error_code: Annotated[int | None, Field(ge=1, le=2**31)] = None
    """NVML's code of what went wrong meanwhile."""
    unready_since: Timestamp | None = None
    """Since when it is not ready, as far as the profiler saw it."""


class MemoryErrors(StatusModel):
    """Errors of the GPU's memory, as far as the driver reports them."""

    ecc: bool | None = None
    """Whether error correction is on."""
    uncorrectable: ErrorCount = None
    """Uncorrectable errors since the driver was loaded or the GPU reset."""
    uncorrectable_ever: ErrorCount = None
    """Uncorrectable errors over the GPU's life."""
    remap_pending: bool | None = None
    """Whether a faulty row of memory will be replaced at the next reset."""
    remap_failed: bool | None = None
    """Whether a faulty row of memory could not be replaced."""
    retirement_pending: bool | None = None
    """Whether a faulty page of memory will be retired at the next reset, on GPUs that cannot replace rows."""


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
    shares: Annotated[int | None, Field(ge=1, le=1024)] = None
    """To how many pods its device plugin lends it at once, by time-slicing or MPS; not set for one."""
    memory_held_bytes: Bytes | None = None
    """Memory in use that no pod explains, rounded up: plans do without. Not set for next to none."""
    mig: bool = False
    """Whether it is a MIG slice of a GPU."""
    power_limit_watts: Annotated[int | None, Field(ge=0, le=100_000)] = None
    """Power limit."""
    power_limit_default_watts: Annotated[int | None, Field(ge=0, le=100_000)] = None
    """Power limit that the board has by default."""
    pcie: PcieLink | None = None
    """Link to the PCIe bus."""
    nvlinks: NvLinks | None = None
    """NVLinks; not set for a GPU without."""
    fabric: Fabric | None = None
    """Its place in the fabric of NVSwitches; not set without one, or where the driver does not tell."""
    memory_errors: MemoryErrors | None = None
    """Errors of its memory."""
    clocks_slowed_by: Annotated[tuple[Slowdown, ...] | None, Field(max_length=8, json_schema_extra=dict(ATOMIC))] = None
    """What slowed the clocks when the profile was written, beside the power limit."""
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
    latency_nanoseconds: Nanoseconds = None
    """Duration of the smallest copy."""


class AllReduceTime(StatusModel):
    """How long an all-reduce took."""

    gpus: Annotated[int, Field(ge=2, le=64)]
    """GPUs that took part: the first of those that were measured."""
    bytes: Annotated[int, Field(ge=1, le=2**40)]
    """What each of them contributed."""
    nanoseconds: Annotated[int, Field(ge=1, le=10**12)]
    """Median duration."""


class Measurement(StatusModel):
    """How the measured figures came about."""

    on: Literal["GPU", "CPU"] = "GPU"
    """GPU: of the GPUs themselves. CPU: of the node's CPU, in the place of simulated GPUs; the description of a
    simulated node asks for it by this field, and its own rates then do not count."""
    request: Text | None = None
    """Value of the annotation uellm.io/measure that the figures answer."""
    finished: Text | None = None
    """What the last measuring pod was to do, as a digest; set when it had nothing left to do."""
    torch_version: Annotated[str | None, StringConstraints(max_length=64)] = None
    """Version of torch that measured."""
    cuda_version: Annotated[str | None, StringConstraints(max_length=64)] = None
    """Version of CUDA that this torch was built for."""
    all_reduce: Annotated[tuple[AllReduceTime, ...], Field(max_length=64, json_schema_extra=dict(ATOMIC))] = ()
    """All-reduce over groups of GPUs. For people; no plan reads it."""
    failures: Annotated[tuple[Sentence, ...], Field(max_length=16, json_schema_extra=dict(ATOMIC))] = ()
    """What could not be measured, or was measured and is not believed, and why."""


class NetworkPeer(StatusModel):
    """The network from this node to another, as measured over TCP between the pods of their profilers."""

    node: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """Name of the other node."""
    bytes_per_second: Annotated[int, Field(ge=1, le=2**50)]
    """Throughput over several connections, with two digits."""
    round_trip_nanoseconds: Annotated[int, Field(ge=1, le=10**10)]
    """Median time of a byte to the other node and back, with two digits."""
    measured_at: Timestamp | None = None
    """Time of the measurement."""


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
    heartbeat_seconds: Annotated[int | None, Field(ge=1, le=86_400)] = None
    """How often the profiler renews `observedAt` at least. A node whose profile is older than three of these is not
    planned on. Not set in a profile that no profiler keeps."""
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
    devices: Annotated[tuple[DeviceProfile, ...], Field(max_length=MOST_DEVICES), MapBy("uuid")] = ()
    """The node's GPUs."""
    links: Annotated[tuple[LinkProfile, ...], Field(max_length=4096, json_schema_extra=dict(ATOMIC))] = ()
    """The links between them."""
    measurement: Measurement | None = None
    """How the measured figures came about; not set where nothing was measured."""
    network: Annotated[tuple[NetworkPeer, ...] | None, Field(max_length=16, json_schema_extra=dict(ATOMIC))] = None
    """The network to other nodes, where the chart's `profiler.measureNetwork` has it measured. Plans over several
    nodes count with it."""
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
