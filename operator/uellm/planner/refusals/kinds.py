"""The type of all refusals, and those about nodes and services. Sizes are in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.planner.target_outcome import TargetOutcome


class PlanRefusal:
    """Why something is refused. `sentence` in sentences.py turns every kind into text."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TooFewGpus(PlanRefusal):
    """The node has fewer free GPUs than a replica needs; `promised` of them will go to other services."""

    need: int
    free: int
    promised: int = 0


@dataclass(frozen=True, slots=True)
class NoGpuOfResource(PlanRefusal):
    """The node has no free GPU of the extended resource that the pod requests."""

    need: int
    resource_name: str


@dataclass(frozen=True, slots=True)
class MigSlicesAlone(PlanRefusal):
    """Several MIG slices would be needed, but they cannot be combined."""


@dataclass(frozen=True, slots=True)
class UnlikeGpus(PlanRefusal):
    """GPUs that share layers must be identical, but the kubelet may choose unlike ones."""

    tensor: int
    products: tuple[tuple[str, int], ...]
    """Products of the node's free GPUs with their counts; "" for a GPU without a name."""


@dataclass(frozen=True, slots=True)
class TooFewGroups(PlanRefusal):
    """Too few groups of `tensor` identical GPUs for the stages."""

    stages: int
    tensor: int
    groups: int


@dataclass(frozen=True, slots=True)
class IndivisibleSize(PlanRefusal):
    """A size of the model cannot be divided among the GPUs that share a layer."""

    tensor: int
    field: str
    """Of config.json."""
    size: int


@dataclass(frozen=True, slots=True)
class SplitBlocks(PlanRefusal):
    """A quantised matrix would be cut inside a block or group of numbers that share a scale."""

    tensor: int
    matrix: str
    part: int
    """Its width on each GPU."""
    multiple: int
    """Width of a block."""
    others: tuple[int, ...]
    """Numbers of GPUs that would do."""


@dataclass(frozen=True, slots=True)
class NoRoom(PlanRefusal):
    """The layers do not fit on the hardest choice of devices."""

    cause: PlanRefusal
    tensor: int
    """GPUs that share each layer. The sizes in `cause` are per GPU."""
    choice: tuple[int, ...] = ()
    """Indices of the GPUs that the kubelet may choose; empty if every choice is equivalent."""


@dataclass(frozen=True, slots=True)
class MissedTargets(PlanRefusal):
    """Targets that a replica is predicted to miss."""

    missed: tuple[TargetOutcome, ...]


@dataclass(frozen=True, slots=True)
class TooFewRequests(PlanRefusal):
    """A replica serves fewer requests a second within the targets than its share of the workload."""

    served_per_s: float
    wanted_per_s: float


@dataclass(frozen=True, slots=True)
class OnNode(PlanRefusal):
    """A refusal of one node."""

    node: str
    cause: PlanRefusal


@dataclass(frozen=True, slots=True)
class OtherLayers(PlanRefusal):
    """A kept plan places a different number of layers than the model has."""

    planned: int
    model: int


@dataclass(frozen=True, slots=True)
class TooFewReplicas(PlanRefusal):
    """A kept plan's nodes have room for fewer replicas than the service needs."""

    nodes: tuple[str, ...]
    room: int
    wanted: int


@dataclass(frozen=True, slots=True)
class NodesTaken(PlanRefusal):
    """No GPU of a kept plan's nodes is free (`free` false), or the free ones have no room."""

    nodes: tuple[str, ...]
    free: bool


@dataclass(frozen=True, slots=True)
class NoneToClaim(PlanRefusal):
    """Too few free GPUs of the products that a kept plan claims."""

    products: tuple[tuple[str, int], ...]
    """Product and number of GPUs of a replica."""
