"""LLMService.status: the plan, the placements, the conditions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from uellm.api.base import ATOMIC, MapBy, StatusModel
from uellm.api.conditions import Conditions
from uellm.api.scalars import Bytes, Count, DeviceUuid, DnsLabel, DnsSubdomain, Sentence, Text, Timestamp

Figure = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,15}(\.[0-9]{1,9})?$", max_length=26)]
"""A decimal number as text, because the Kubernetes API avoids floats."""
Milliseconds = Annotated[int | None, Field(ge=0, le=2**53)]
Devices = Annotated[tuple[DeviceUuid, ...], Field(max_length=64, json_schema_extra=dict(ATOMIC))]
LayerCounts = Annotated[
    tuple[Annotated[int, Field(ge=0, le=10_000)], ...], Field(max_length=64, json_schema_extra=dict(ATOMIC))
]
ClassNames = Annotated[tuple[DnsSubdomain, ...], Field(max_length=64, json_schema_extra=dict(ATOMIC))]
NodeNames = Annotated[tuple[DnsSubdomain, ...], Field(max_length=1024, json_schema_extra=dict(ATOMIC))]


class Summary(StatusModel):
    """A summary of the plan for the printer columns."""

    gpus: Text = ""
    """GPUs of a replica and their use, as in `4 = tp2 x pp2`."""
    layers: Text = ""
    """Layers of each stage, as in `18,22`."""
    nodes: Text = ""
    """Nodes on which replicas run."""
    slo: Text = ""
    """Share of requests that met their targets, such as `99.2%`. Before there are requests, the prediction:
    `feasible` or `infeasible`. Empty where neither is known. `(1 of 3 replicas)` follows where the load needs more
    replicas than `spec.replicas`.
    """
    ready: Text = ""
    """Ready and desired replicas, as in `1/2`."""


class StageRequirement(StatusModel):
    """The requirements of a stage for each of its devices."""

    memory_bytes: Bytes
    """Memory of the device."""
    product: Text | None = None
    """Product of the device, where the plan depends on it."""


class StageMemory(StatusModel):
    """Use of each device's memory in a stage, in bytes."""

    weights: Bytes = 0
    """Model weights."""
    kv: Bytes = 0
    """KV cache."""
    activations: Bytes = 0
    """Peak of the activations."""
    adapters: Bytes | None = None
    """Slots for LoRA adapters."""
    encoder: Bytes | None = None
    """What encoding images and videos takes beyond the activations, and their embeddings."""
    graphs: Bytes = 0
    """CUDA graphs."""
    context: Bytes = 0
    """Context of the driver and of libraries."""
    free: Bytes = 0
    """Remaining memory."""


class StageStatus(StatusModel):
    """A stage of the pipeline."""

    devices: Devices = ()
    """Devices intended for the first replica, by tensor rank."""
    requires: StageRequirement | None = None
    """Requirements for a device that replaces one of these."""
    memory: StageMemory | None = None
    """Use of the devices' memory."""


class PredictionStatus(StatusModel):
    """The predicted performance of a replica."""

    ttft_milliseconds: Milliseconds = None
    """Time to the first token."""
    tpot_milliseconds: Milliseconds = None
    """Time for each further token."""
    requests_per_second: Figure | None = None
    """Rate of requests that it can serve within the targets."""
    kv_cache_tokens: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Tokens that its KV cache holds."""


class AlternativeStatus(StatusModel):
    """A shape that was considered and rejected."""

    gpus_per_replica: Count = 0
    """GPUs of a replica."""
    tensor: Count = 0
    """GPUs that share each layer."""
    pipeline: Count = 0
    """Number of pipeline stages."""
    layers: LayerCounts = ()
    """Layers of each stage, where a split exists."""
    nodes: NodeNames = ()
    """Nodes for which it was considered."""
    rejected: Sentence
    """Why it was rejected."""


class SloVerdictStatus(StatusModel):
    """Whether the plan is predicted to meet the targets."""

    feasible: bool
    """False: the targets cannot be met on these nodes, and the plan is the nearest possible."""
    constraint: Sentence | None = None
    """Which targets cannot be met, and the best that is possible."""
    change: Sentence | None = None
    """The smallest change that would make the targets feasible."""


class SearchFiguresStatus(StatusModel):
    """How the plan was found."""

    shapes: Count = 0
    """Number of possible shapes (tensor x pipeline)."""
    left_out: Count = 0
    """Number of shapes that were pruned: proven to be no better without an evaluation on every node."""
    placements: Count = 0
    """Number of placements computed."""
    optimal: bool = False
    """Whether the split of the layers is proven to be optimal."""
    gap_percent: Figure | None = None
    """Upper bound of the gap between the split's cost and the optimal cost, in percent."""


class AdapterSlotsStatus(StatusModel):
    """Room for LoRA adapters on the GPUs of a replica."""

    slots: Count
    """Adapters that can take part in one step."""
    rank: Count
    """Largest rank of an adapter."""


class PlanStatus(StatusModel):
    """The shape of every replica."""

    gpus_per_replica: Count
    """GPUs of a replica."""
    tensor: Count
    """GPUs that share each layer."""
    pipeline: Count
    """Number of pipeline stages."""
    layers: LayerCounts
    """Layers of each stage, in pipeline order."""
    max_num_batched_tokens: Annotated[int | None, Field(ge=1, le=100_000_000)] = None
    """Most tokens that the engine computes in one step."""
    max_num_seqs: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """Most requests that the engine runs at the same time."""
    adapters: AdapterSlotsStatus | None = None
    """Room for LoRA adapters, where the service has or had some."""
    allocation: Literal["DRA"] | None = None
    """Set where the pods claim their GPUs by DRA."""
    nodes_per_replica: Annotated[int | None, Field(ge=2, le=64)] = None
    """Nodes that a replica spans, where it spans several."""
    kv_cache_bytes: Bytes | None = None
    """Size of the KV cache on each GPU, as the engine's flag sets it."""
    kv_cache_tokens_required: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Tokens that the KV cache must hold on any devices that replace the planned ones."""
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=64, json_schema_extra=dict(ATOMIC))] = ()
    """The stages, in pipeline order."""
    nodes: NodeNames = ()
    """Nodes that can hold a replica, best first."""
    node_classes: ClassNames | None = None
    """Classes of nodes, where it was planned for a node that has not joined yet, best first."""
    predicted: PredictionStatus | None = None
    """Predicted performance of a replica."""
    recommended_replicas: Annotated[int | None, Field(ge=0, le=1_000_000)] = None
    """Replicas that the workload needs."""
    assumptions: Annotated[tuple[Sentence, ...], Field(max_length=32, json_schema_extra=dict(ATOMIC))] = ()
    """Assumptions, and what the user set."""
    alternatives: Annotated[tuple[AlternativeStatus, ...], Field(max_length=8, json_schema_extra=dict(ATOMIC))] = ()
    """Shapes that were considered and rejected."""
    profile_hash: Annotated[str | None, StringConstraints(max_length=64)] = None
    """Digest of the facts about the nodes that the plan depends on."""
    binding: Sentence | None = None
    """The limit that the plan reaches first."""
    slo: SloVerdictStatus | None = None
    """Whether the targets are predicted to be met; not set if there are no targets or no predictions."""
    search: SearchFiguresStatus | None = None
    """How the plan was found."""
    reason: Sentence | None = None
    """Why the plan was made, or why it replaced the previous one."""


RevisionName = Annotated[str | None, StringConstraints(pattern=r"^[0-9a-f]{10}$", max_length=10)]


class PodPlacement(StatusModel):
    """The planned and the actual placement of a pod."""

    pod: DnsSubdomain
    """Name of the pod."""
    node: DnsSubdomain | None = None
    """Its node."""
    revision: RevisionName = None
    """The revision that it was started from."""
    planned: Devices = ()
    """Devices intended for it; none for replicas after the first."""
    actual: Devices = ()
    """Devices that the pod uses, in pipeline order."""
    layers: LayerCounts = ()
    """Layers of each stage with which the engine was started."""
    matches_plan: Literal["True", "False", "Unknown"] = "Unknown"
    """Whether planned and actual devices agree."""


class ClassAttainment(StatusModel):
    """Recent results of a class of requests, over all pods."""

    name: DnsLabel
    """Name of the class."""
    attainment: Text | None = None
    """Share of its requests that met every target, such as 99.2%. A refused request counts as a miss."""
    p99_ttft_milliseconds: Milliseconds = None
    """99th percentile of the time to the first token, in the slowest pod."""
    p99_tpot_milliseconds: Milliseconds = None
    """99th percentile of the time for each further token, in the slowest pod."""
    requests: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Number of requests measured, rounded to two digits."""


class MeasuredStatus(StatusModel):
    """The time of the engine's steps as its pods measured it, beside what was predicted of the same steps."""

    steps: Annotated[int, Field(ge=0, le=2**53)]
    """Steps measured since the pods were started, rounded down to one digit."""
    tpot_microseconds: Annotated[int, Field(ge=0, le=2**53)]
    """Mean time of the last steps, which is the time for each further token."""
    predicted_tpot_microseconds: Annotated[int, Field(ge=0, le=2**53)]
    """What was predicted of the same steps when the pods were started."""
    error_percent: Annotated[int, Field(ge=-100, le=100_000)]
    """By how much the measured time is above the predicted one; negative where it is below."""
    prefill_factor: Figure
    """Factor on what prompts add to a step, on the prediction by the GPUs' rates alone."""
    decode_factor: Figure
    """The same factor on the rest of a step."""


class PodFailuresStatus(StatusModel):
    """Pods that failed for good within the last hour: evicted, not admitted, or lost with their node."""

    count: Annotated[int, Field(ge=1, le=2**31 - 1)]
    """Number of pods."""
    reason: Annotated[str, StringConstraints(max_length=63)]
    """Reason of the last failure, as the kubelet gives it, such as `Evicted`."""
    message: Annotated[str, StringConstraints(max_length=1024)]
    """The last failure: pod, node, and the kubelet's message."""
    last_failed_at: Timestamp
    """When the last failure was observed."""
    pods: Annotated[tuple[DnsSubdomain, ...], Field(max_length=32, json_schema_extra=dict(ATOMIC))] = ()
    """The failed pods that still exist; the operator deletes them."""


class AutoscalingStatus(StatusModel):
    """What the operator chose, where it chooses the number of replicas."""

    replicas: Annotated[int, Field(ge=0, le=1000)]
    """The number that is to run."""
    startup_seconds: Annotated[int | None, Field(ge=0, le=2**31)] = None
    """The time that a replica took to start, measured."""


class LLMServiceStatus(StatusModel):
    """The plan and the observed state."""

    observed_generation: Annotated[int | None, Field(ge=0)] = None
    """The generation of the spec that this status refers to."""
    replicas: Annotated[int | None, Field(ge=0, le=1000)] = None
    """Number of pods."""
    ready_replicas: Annotated[int | None, Field(ge=0, le=1000)] = None
    """Number of pods that serve requests."""
    selector: Annotated[str | None, StringConstraints(max_length=512)] = None
    """Label selector of the pods, for autoscalers."""
    endpoint: Annotated[str | None, StringConstraints(max_length=512)] = None
    """Address of the OpenAI-compatible API inside the cluster."""
    summary: Summary | None = None
    """Summary of the plan."""
    plan: PlanStatus | None = None
    """The shape of every replica."""
    revision: RevisionName = None
    """The revision that every pod should run: a digest of everything that its processes depend on. The name of the
    ConfigMap that holds it ends with this digest."""
    placements: Annotated[
        tuple[PodPlacement, ...],
        Field(max_length=32),
        MapBy("pod"),
    ] = ()
    """Planned and actual devices of each pod."""
    slo: Annotated[tuple[ClassAttainment, ...], Field(max_length=16), MapBy("name")] = ()
    """Measurements of the last minutes, by class; updated at most once a minute."""
    measured: MeasuredStatus | None = None
    """Step times that the pods measured, beside what was predicted; updated at most once a minute."""
    autoscaling: AutoscalingStatus | None = None
    """The number of replicas, where `spec.autoscaling` is set."""
    pod_failures: PodFailuresStatus | None = None
    """Pods that failed for good within the last hour."""
    placements_omitted: Count | None = None
    """Number of pods beyond the first 32, whose placements are not listed."""
    conditions: Conditions = ()
    """Conditions: Ready, Reconciling and Stalled as in kstatus, and UELLM's own."""
