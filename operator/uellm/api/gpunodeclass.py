"""GPUNodeClass: what the nodes of a kind look like, so that a cluster without such a node can be planned on."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from uellm.api.base import ATOMIC, MapBy, Model, StatusModel, ValidationRule
from uellm.api.conditions import Conditions
from uellm.api.gpunodeprofile import MOST_DEVICES, BytesPerSecond, Gigaflops
from uellm.api.scalars import Bytes, Count, Quantity, Text
from uellm.hardware import GPU_RESOURCE, LinkKind

LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"

LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY, min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE, max_length=63)]
Index = Annotated[int, Field(ge=0, le=1023)]


class Taint(Model):
    """A taint of the nodes."""

    key: LabelKey
    """Key of the taint."""
    value: LabelValue = ""
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
    """What it does to pods that do not tolerate it."""


class HostResources(Model):
    """What the nodes have for pods besides GPUs. What is not given is not checked."""

    cpu: Quantity | None = None
    """CPU cores."""
    memory: Quantity | None = None
    """Memory."""


class Rates(Model):
    """The GPU's performance. Of a known product, missing figures are those of the product."""

    bf16_gigaflops_per_second: Gigaflops = None
    """Throughput of matrix products in bfloat16."""
    fp16_gigaflops_per_second: Gigaflops = None
    """Throughput of matrix products in float16."""
    fp8_gigaflops_per_second: Gigaflops = None
    """Throughput of matrix products in FP8 (E4M3)."""
    memory_bytes_per_second: BytesPerSecond = None
    """Bandwidth of the GPU's memory, read and written."""


class ClassDevice(Model):
    """One GPU of such a node."""

    index: Index
    """Its number, from 0 on in the order of the driver."""
    product: Text = ""
    """Product name."""
    compute_capability: Annotated[str | None, StringConstraints(max_length=16)] = None
    """CUDA compute capability, as in `9.0`."""
    memory_bytes: Annotated[Bytes, Field(ge=1)]
    """Total memory."""
    resource_name: Annotated[str, StringConstraints(min_length=1, max_length=317)] = GPU_RESOURCE
    """Extended resource by which pods request it."""
    mig: bool = False
    """Whether it is a MIG slice of a GPU."""
    measured: Rates | None = None
    """Its performance, as measured on a node of this kind."""


class ClassLink(Model):
    """The link from one GPU to another, in that direction."""

    a: Index
    """Index of the GPU that sends."""
    b: Index
    """Index of the GPU that receives."""
    kind: LinkKind = "SYS"
    """Kind of the link, in the terms of `nvidia-smi topo -m`."""
    bytes_per_second: BytesPerSecond = None
    """Throughput of large copies."""
    latency_nanoseconds: Annotated[int | None, Field(ge=0, le=10**10)] = None
    """Duration of the smallest copy."""


class GPUNodeClassSpec(Model):
    """What the nodes are."""

    rules: ClassVar = (
        ValidationRule(
            cel="self.devices.all(d, d.index < size(self.devices))",
            holds=lambda spec: all(device.index < len(spec.devices) for device in spec.devices),
            message="must be numbered from 0 on, without gaps",
            field=".devices",
        ),
        ValidationRule(
            cel="!has(self.links) || self.links.all(l, l.a < size(self.devices) && l.b < size(self.devices))",
            holds=lambda spec: all(max(link.a, link.b) < len(spec.devices) for link in spec.links),
            message="must name only indices of devices",
            field=".links",
        ),
    )

    labels: Annotated[dict[str, LabelValue], Field(max_length=64)] = Field(default_factory=dict)
    """Labels that the nodes carry when they join. A node with all of them is taken for one of this class."""
    taints: Annotated[tuple[Taint, ...], Field(max_length=32, json_schema_extra=dict(ATOMIC))] = ()
    """Taints that the nodes keep after they have joined."""
    resources: HostResources = Field(default_factory=HostResources)
    """What the nodes have for pods besides GPUs."""
    simulated: bool = False
    """Whether the GPUs are described by a file, and a CPU stands in for them."""
    devices: Annotated[tuple[ClassDevice, ...], Field(min_length=1, max_length=MOST_DEVICES), MapBy("index")]
    """The GPUs of such a node."""
    links: Annotated[tuple[ClassLink, ...], Field(max_length=4096, json_schema_extra=dict(ATOMIC))] = ()
    """The links between them."""


class ClassSummary(StatusModel):
    """A summary of the GPUs for the printer columns."""

    gpus: Text | None = None
    """Number of GPUs of a node."""
    products: Text | None = None
    """Products, each with its count."""


class GPUNodeClassStatus(StatusModel):
    """What the operator knows of the class."""

    nodes: Count | None = None
    """Number of nodes in the cluster that are of this class."""
    summary: ClassSummary | None = None
    """Summary of the GPUs."""
    conditions: Conditions = ()
    """Aspects of the class's state."""


class GPUNodeClass(Model):
    """A kind of GPU node that may join the cluster. Services that fit on no node are planned for the kinds that fit."""

    api_version: Literal["uellm.io/v1alpha1"] = "uellm.io/v1alpha1"
    """Version of this schema."""
    kind: Literal["GPUNodeClass"] = "GPUNodeClass"
    """Kind of the resource."""
    metadata: dict[str, Any]
    """Standard metadata."""
    spec: GPUNodeClassSpec
    """What the nodes are."""
    status: GPUNodeClassStatus | None = None
    """What the operator knows of the class."""
