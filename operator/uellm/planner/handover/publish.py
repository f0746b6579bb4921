"""Makes the documents that carry a plan to other components: plan.json and the pod's annotation."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from uellm.hardware import StageNeeds, classes_of
from uellm.models.schemes import DEPRECATED
from uellm.planner import constants
from uellm.planner.handover.annotation import PlanAnnotation
from uellm.planner.handover.plan_document import PlanDocument, PlannedEngine
from uellm.planner.handover.revalidate import resource_name, task_of
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.planner.vllm import flags
from uellm.planner.vllm.flags import UserArgs, resolve


def plan_document(plan: Plan, request: PlanRequest) -> PlanDocument:
    """plan.json for a plan of the request."""
    named = set(plan.nodes)
    nodes = [offer.node for offer in request.nodes if offer.node.name in named]
    own_cache = flags.KV_CACHE_BYTES in UserArgs(request.engine.args).flags
    resource = resource_name(plan, request)
    return PlanDocument(
        gpus=plan.gpus_per_replica,
        layers=plan.layers,
        platform="cpu" if nodes and all(node.simulated for node in nodes) else "cuda",
        task=task_of(plan, request),
        engine=planned_engine(plan, request),
        classes=classes_of(device for node in nodes for device in node.devices if device.resource_name == resource),
        kv_tokens=0 if own_cache or not plan.kv_cache_bytes else plan.kv_cache_tokens_required,
        kv_factor=kv_factor(request),
        nodes=plan.nodes_per_replica,
        claimed=tuple(StageNeeds(stage.product, stage.memory_bytes) for stage in plan.stages) if plan.claims else (),
    )


def plan_annotation(plan: Plan, request: PlanRequest) -> PlanAnnotation:
    """The pod's annotation for a plan of the request."""
    task, nodes = task_of(plan, request), plan.nodes_per_replica
    # The nodes of a group share the layers as planned.
    layers = plan.layers if nodes > 1 else task.fixed_layers(plan.pipeline)
    return PlanAnnotation(
        gpus=plan.gpus_per_replica // nodes,
        resource_name=resource_name(plan, request),
        pipeline=plan.pipeline,
        task=replace(task, layers_override=layers),
        service=request.service,
        nodes=nodes,
    )


def planned_engine(plan: Plan, request: PlanRequest) -> PlannedEngine:
    """How the engine is started: the plan's flags that the user did not set, then the user's own."""
    own, architecture = request.engine, request.architecture
    planned = [
        *own.task_args,
        *([] if own.leaves_length else [(flags.MODEL_LENGTH, str(request.max_model_len))]),
        (flags.BATCHED_TOKENS, str(plan.max_num_batched_tokens)),
        (flags.SEQUENCES, str(plan.max_num_seqs)),
        *([(flags.KV_CACHE_BYTES, str(plan.kv_cache_bytes * kv_factor(request)))] if plan.kv_cache_bytes else []),
        # If KV cache runs out after all, the request with the latest deadline is preempted, not the newest one.
        (flags.SCHEDULING_POLICY, "priority"),
    ]
    planned += _adapter_flags(plan)
    if own.dtype != "auto":
        planned.insert(0, (flags.DTYPE, architecture.dtype))
    if own.quantization not in ("auto", "none"):
        planned.insert(0, (flags.QUANTIZATION, own.quantization))
    if architecture.quantization in DEPRECATED:
        planned.append((flags.ALLOW_DEPRECATED, ""))
    if (share := least_free_share(plan, request)) < 1:
        utilization = Fraction(constants.GPU_MEMORY_UTILIZATION) * share
        # Rounded down: the engine refuses to start where less than this share is free.
        planned.append((flags.UTILIZATION, f"{math.floor(utilization * 1000) / 1000:g}"))
    args = resolve(UserArgs(own.args), planned)
    return PlannedEngine(own.model, own.revision, own.served_name, args, loads_adapters=plan.adapters is not None)


def _adapter_flags(plan: Plan) -> list[tuple[str, str]]:
    if plan.adapters is None:
        return []
    slots = plan.adapters.slots
    return [
        (flags.ENABLE_ADAPTERS, ""),
        (flags.ADAPTER_SLOTS, str(slots)),
        (flags.ADAPTER_RANK, str(plan.adapters.rank)),
        (flags.HOST_ADAPTERS, str(constants.HOST_ADAPTERS_PER_SLOT * slots)),
    ]


def least_free_share(plan: Plan, request: PlanRequest) -> Fraction:
    """The least share of its memory that a GPU of the plan's nodes has for the engine, above 0 and up to 1.

    Less than 1 where something outside the cluster holds the rest. Any of the GPUs may become the pod's.
    """
    named, resource = set(plan.nodes), resource_name(plan, request)
    shares = [
        Fraction(device.memory_bytes, device.memory_bytes + device.memory_held_bytes)
        for node in (offer.node for offer in request.nodes if offer.node.name in named)
        for device in node.devices
        if device.usable and device.resource_name == resource and device.memory_bytes
    ]
    return min(shares, default=Fraction(1))


def kv_factor(request: PlanRequest) -> int:
    """How much wider the engine's KV cache is than the plan's: by default the CPU engine computes in float32."""
    simulated = bool(request.nodes) and all(offer.node.simulated for offer in request.nodes)
    if not simulated or request.engine.dtype != "auto":
        return 1
    return max(1, 4 // request.architecture.kv_dtype_bytes)
