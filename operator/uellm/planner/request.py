"""The planner's input as one value: the same value always gives the same plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from uellm.hardware import AUTO, DEVICE_PLUGIN, DRA, Node
from uellm.models import POOLING_TASKS, Architecture, Task
from uellm.placement_policies import DEFAULT_PLACEMENT_POLICY
from uellm.planner.adapter_slots import AdapterSlots
from uellm.planner.efficiency import Efficiency
from uellm.step_basis import Correction

OBJECTIVES = ("Efficiency", "Latency", "Throughput")
ALLOCATIONS = (DEVICE_PLUGIN, DRA, AUTO)


@dataclass(frozen=True, slots=True)
class SloClass:
    """One class of `spec.slo.classes`. None: no such target."""

    name: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """`spec.workload`: the load of the whole service. None: not given; the plan states its assumption."""

    requests_per_s: float | None = None
    prompt_tokens_mean: int | None = None
    prompt_tokens_p95: int | None = None
    output_tokens_mean: int | None = None
    output_tokens_p95: int | None = None


@dataclass(frozen=True, slots=True)
class Overrides:
    """`spec.parallelism`: the user's choices. They always take precedence, and are always checked and shown."""

    tensor: int | None = None
    pipeline: int | None = None
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """How to start the engine, apart from the placement."""

    model: str = ""
    """The argument of `vllm serve`: a Hugging Face id or a path."""
    revision: str = ""
    served_name: str = ""
    args: tuple[str, ...] = ()
    """The user's arguments, `spec.engine.args`."""
    dtype: str = "auto"
    """Passed on unless it is auto."""
    quantization: str = "auto"
    task_args: tuple[tuple[str, str], ...] = ()
    """Flags and values that tell the engine its task, and how it loads its model."""
    lengthens: bool = False
    """The engine is told to accept a length beyond that of the model's config.json."""
    own_image: bool = False
    """The user or the administrator names the engine's image: which kernels it has is not known."""
    leaves_length: bool = False
    """The engine finds the greatest length itself, which may be less than that of config.json."""


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """A node as it is available to this service.

    `free`: uuids of the usable devices that are unallocated or this service's own. `promised`: number of devices
    planned for other services on this node that none of their pods holds yet; the kubelet will choose which.
    """

    node: Node
    free: tuple[str, ...]
    promised: int = 0
    closed: str = ""
    """Why the node takes no new pods at the moment, such as a cordon; it then offers nothing."""
    node_class: str = ""
    """Not a node but a class of nodes that may join, as many as are needed; empty for a node that is there."""
    host_memory_bytes: int | None = None
    """Memory of a node of the class for pods; None: not known."""
    host_millicores: int | None = None
    """Thousandths of CPU cores of a node of the class for pods; None: not known."""


class LeftOut(NamedTuple):
    """Nodes, or a class of nodes, that the service's pods may not go to."""

    place: str
    """Their names."""
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Everything that a plan depends on."""

    service: str
    """`namespace/name`."""
    architecture: Architecture
    max_model_len: int
    nodes: tuple[NodeOffer, ...]
    task: Task = "Generate"
    least_step_tokens: int = 0
    """A step of the engine holds at least these, because it cuts no prompt into chunks; 0: it does."""
    classes: tuple[SloClass, ...] = ()
    objective: str = "Efficiency"
    workload: Workload = field(default_factory=Workload)
    overrides: Overrides = field(default_factory=Overrides)
    policy: str = DEFAULT_PLACEMENT_POLICY
    gpus_min: int = 1
    gpus_max: int | None = None
    """None: no limit but the node's GPUs."""
    allocation: str = DEVICE_PLUGIN
    """Auto: DRA where a plan gains by it."""
    multi_node: bool = False
    """A replica may span several nodes."""
    engine: EngineRequest = field(default_factory=EngineRequest)
    replicas: int = 1
    efficiency: Efficiency = field(default_factory=Efficiency)
    """Fitted to measurements, or the defaults."""
    variants: tuple[tuple[str, Architecture], ...] = ()
    """The same model with quantised weights, by the name of the quantization. One is proposed if the model does not
    fit."""
    left_out: tuple[LeftOut, ...] = ()
    """The profiled nodes and the classes that the service's pods may not go to."""
    notes: tuple[str, ...] = ()
    """Sentences of the caller for the plan's `assumptions`."""
    would_join: tuple[NodeOffer, ...] = ()
    """Classes of nodes to plan on where no plan is possible on the nodes that are there."""
    adapters: AdapterSlots | None = None
    """Slots for LoRA adapters; None: the engine serves none."""
    corrections: tuple[Correction, ...] = ()
    """Step times that were measured, of any model: those of this one correct the predictions."""

    @property
    def pools(self) -> bool:
        """Whether an answer is one pass over the prompt, without output tokens."""
        return self.task in POOLING_TASKS
