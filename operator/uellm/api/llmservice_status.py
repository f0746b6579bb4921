"""LLMService.status: the plan, the placements, the conditions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from uellm.api.base import ATOMIC, MapBy, StatusModel
from uellm.api.conditions import Conditions
from uellm.api.scalars import Bytes, Count, DeviceUuid, DnsLabel, DnsSubdomain, Sentence, Text, Timestamp

Figure = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,15}(\.[0-9]{1,9})?$", max_length=26)]
"""A decimal number as text: the Kubernetes API knows no floats."""
Milliseconds = Annotated[int | None, Field(ge=0, le=2**53)]
Devices = Annotated[tuple[DeviceUuid, ...], Field(max_length=64, json_schema_extra=dict(ATOMIC))]
LayerCounts = Annotated[
    tuple[Annotated[int, Field(ge=0, le=10_000)], ...], Field(max_length=64, json_schema_extra=dict(ATOMIC))
]
NodeNames = Annotated[tuple[DnsSubdomain, ...], Field(max_length=1024, json_schema_extra=dict(ATOMIC))]


class Summary(StatusModel):
    """The decision in a line, for the printer columns."""

    gpus: Text = ""
    """GPUs of a replica and their use, as in `4 = tp2 x pp2`."""
    layers: Text = ""
    """Layers of each stage, as in `18,22`."""
    nodes: Text = ""
    """Nodes on which replicas run."""
    slo: Text = ""
    """Share of requests that met their targets, such as `99.2%`; while there are none, whether that is predicted:
    `feasible` or `infeasible`; empty where nothing can be said. `(1 of 3 replicas)` follows where the load needs more
    replicas than `spec.replicas`."""
    ready: Text = ""
    """Ready and wanted replicas, as in `1/2`."""


class StageRequirement(StatusModel):
    """What a stage needs of each of its devices."""

    memory_bytes: Bytes
    """Memory."""
    product: Text | None = None
    """Product, where the plan depends on it."""


class StageMemory(StatusModel):
    """What fills the memory of each device of a stage, in bytes."""

    weights: Bytes = 0
    """Model weights."""
    kv: Bytes = 0
    """Keys and values of running requests."""
    activations: Bytes = 0
    """Peak of activations."""
    graphs: Bytes = 0
    """CUDA graphs."""
    context: Bytes = 0
    """Context of the driver and libraries."""
    free: Bytes = 0
    """What is left."""


class StageStatus(StatusModel):
    """A stage of the pipeline."""

    devices: Devices = ()
    """Devices intended for the first replica, by tensor rank."""
    requires: StageRequirement | None = None
    """What any other device must have to take their place."""
    memory: StageMemory | None = None
    """What fills them."""


class PredictionStatus(StatusModel):
    """What a replica is expected to do."""

    ttft_milliseconds: Milliseconds = None
    """Time to the first token."""
    tpot_milliseconds: Milliseconds = None
    """Time for each further token."""
    requests_per_second: Figure | None = None
    """Requests that it can serve within the targets."""
    kv_cache_tokens: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Tokens whose keys and values it holds at a time."""


class AlternativeStatus(StatusModel):
    """A shape that was weighed and not taken."""

    gpus_per_replica: Count = 0
    """GPUs of a replica."""
    tensor: Count = 0
    """GPUs that share each layer."""
    pipeline: Count = 0
    """Stages."""
    layers: LayerCounts = ()
    """Layers of each stage, where a split exists."""
    nodes: NodeNames = ()
    """Nodes that it was weighed for."""
    rejected: Sentence
    """Why not."""


class SloVerdictStatus(StatusModel):
    """Whether the plan is predicted to keep the targets."""

    feasible: bool
    """False: nothing that is there can keep them, and the plan is the nearest that can be had."""
    constraint: Sentence | None = None
    """What cannot be had, and the best that can."""
    change: Sentence | None = None
    """The smallest change that would make the targets feasible."""


class SearchFiguresStatus(StatusModel):
    """How the plan was found."""

    shapes: Count = 0
    """Ways to use so many GPUs that there are."""
    left_out: Count = 0
    """Those of them that were proven to be no better without a look at every node."""
    placements: Count = 0
    """Placements that were worked out."""
    optimal: bool = False
    """True where no split of the layers is better."""
    gap_percent: Figure | None = None
    """How far the split's cost may be above the best one's at most."""


class PlanStatus(StatusModel):
    """The shape of every replica."""

    gpus_per_replica: Count
    """GPUs of a replica."""
    tensor: Count
    """GPUs that share each layer."""
    pipeline: Count
    """Stages."""
    layers: LayerCounts
    """Layers of each stage, in pipeline order."""
    max_num_batched_tokens: Annotated[int | None, Field(ge=1, le=100_000_000)] = None
    """Tokens that the engine computes in one step."""
    max_num_seqs: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """Requests that the engine runs at a time."""
    kv_cache_bytes: Bytes | None = None
    """Memory that the engine is told to keep for keys and values, on each GPU."""
    kv_cache_tokens_required: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Tokens whose keys and values any devices in the place of the planned ones must hold at a time."""
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=64, json_schema_extra=dict(ATOMIC))] = ()
    """The stages, in pipeline order."""
    nodes: NodeNames = ()
    """Nodes that can hold a replica, best first."""
    predicted: PredictionStatus | None = None
    """What a replica is expected to do."""
    recommended_replicas: Annotated[int | None, Field(ge=0, le=1_000_000)] = None
    """Replicas that the workload needs."""
    assumptions: Annotated[tuple[Sentence, ...], Field(max_length=32, json_schema_extra=dict(ATOMIC))] = ()
    """What was assumed because nobody said it."""
    alternatives: Annotated[tuple[AlternativeStatus, ...], Field(max_length=8, json_schema_extra=dict(ATOMIC))] = ()
    """What else was weighed."""
    profile_hash: Annotated[str | None, StringConstraints(max_length=64)] = None
    """Digest of the facts about the nodes that the plan depends on."""
    binding: Sentence | None = None
    """The limit that the plan runs into first."""
    slo: SloVerdictStatus | None = None
    """Whether the targets are predicted to be met; not set where there are none or nothing is predicted."""
    search: SearchFiguresStatus | None = None
    """How it was found."""
    reason: Sentence | None = None
    """Why it was made, or why it took the place of the plan before it."""


RevisionName = Annotated[str | None, StringConstraints(pattern=r"^[0-9a-f]{10}$", max_length=10)]


class PodPlacement(StatusModel):
    """What a pod was meant to use and what it uses."""

    pod: DnsSubdomain
    """Name of the pod."""
    node: DnsSubdomain | None = None
    """Its node."""
    revision: RevisionName = None
    """The revision that it was started from."""
    planned: Devices = ()
    """Devices intended for it; none for replicas after the first."""
    actual: Devices = ()
    """Devices that it uses, in pipeline order."""
    layers: LayerCounts = ()
    """Layers on each stage, as the engine was started."""
    matches_plan: Literal["True", "False", "Unknown"] = "Unknown"
    """Whether both agree."""


class ClassAttainment(StatusModel):
    """How the requests of a class fared lately, over all pods."""

    name: DnsLabel
    """Name of the class."""
    attainment: Text | None = None
    """Share of its requests that met every target, such as 99.2%; a refused request is a miss."""
    p99_ttft_milliseconds: Milliseconds = None
    """Time to the first token that 99 of 100 requests did not exceed, in the pod where it is longest."""
    p99_tpot_milliseconds: Milliseconds = None
    """Time for each further token that 99 of 100 requests did not exceed, in the pod where it is longest."""
    requests: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Requests that this is about, to two digits."""


class PodFailuresStatus(StatusModel):
    """Pods that failed for good within the last hour: evicted, not admitted, or lost with their node."""

    count: Annotated[int, Field(ge=1, le=2**31 - 1)]
    """How many."""
    reason: Annotated[str, StringConstraints(max_length=63)]
    """The last one's reason, in the kubelet's word, such as `Evicted`."""
    message: Annotated[str, StringConstraints(max_length=1024)]
    """The last one: pod, node, and the kubelet's words."""
    last_failed_at: Timestamp
    """When the last one was seen."""
    pods: Annotated[tuple[DnsSubdomain, ...], Field(max_length=32, json_schema_extra=dict(ATOMIC))] = ()
    """Those that are still there; the operator deletes them."""


class LLMServiceStatus(StatusModel):
    """What was decided and what is."""

    observed_generation: Annotated[int | None, Field(ge=0)] = None
    """The generation of the spec that this status is about."""
    replicas: Annotated[int | None, Field(ge=0, le=1000)] = None
    """Pods that exist."""
    ready_replicas: Annotated[int | None, Field(ge=0, le=1000)] = None
    """Pods that serve."""
    selector: Annotated[str | None, StringConstraints(max_length=512)] = None
    """Label selector of the pods, for autoscalers."""
    endpoint: Annotated[str | None, StringConstraints(max_length=512)] = None
    """Address of the OpenAI-compatible API inside the cluster."""
    summary: Summary | None = None
    """The decision in a line."""
    plan: PlanStatus | None = None
    """The shape of every replica."""
    revision: RevisionName = None
    """What every pod is to be started from: the digest of everything that its processes depend on, and the end of the
    name of the ConfigMap that holds it."""
    placements: Annotated[
        tuple[PodPlacement, ...],
        Field(max_length=32),
        MapBy("pod"),
    ] = ()
    """Planned and actual devices of each pod."""
    slo: Annotated[tuple[ClassAttainment, ...], Field(max_length=16), MapBy("name")] = ()
    """What was measured over the last minutes, by class; written at most once a minute."""
    pod_failures: PodFailuresStatus | None = None
    """Pods that failed for good within the last hour."""
    placements_omitted: Count | None = None
    """Pods beyond the first 32."""
    conditions: Conditions = ()
    """Aspects of the state: Ready, Reconciling and Stalled as kstatus reads them, and UELLM's own."""
