"""What others read of a plan: plan.json (the launcher) and the pod's annotation (the extender).

The annotation is part of the pod template, so it comes from the plan and the spec alone: a new measurement must not
change a byte of it.
"""

from __future__ import annotations

from typing import Any

from uellm.planner.handover.revalidate import task_of
from uellm.planner.nodes.facts import device_facts, link_facts
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.planner.vllm import flags as flags
from uellm.planner.vllm.flags import UserArgs, resolve

VERSION = 1


def plan_document(plan: Plan, request: PlanRequest) -> dict[str, Any]:
    """The content of plan.json: the plan, the placement task, and the facts of every device a pod may get."""
    task = task_of(plan, request)
    nodes = [offer.node for offer in request.nodes if offer.node.name in plan.nodes]
    own_cache = flags.KV_CACHE_BYTES in UserArgs(request.engine.args).flags
    return {
        "version": VERSION,
        "plan": plan.to_dict(),
        "platform": "cpu" if nodes and all(node.simulated for node in nodes) else "cuda",
        "instance": {
            "layers": len(task.layer_bytes),
            "layerBytes": list(task.layer_bytes),
            "layerKvBytes": list(task.layer_kv_bytes),
            "firstStageBytes": task.first_bytes,
            "lastStageBytes": task.last_bytes,
        },
        "reservedBytes": {"fixed": task.fixed_bytes, "fraction": task.margin},
        "policy": task.policy,
        "objective": task.objective,
        "layersOverride": None if task.layers_override is None else list(task.layers_override),
        "tensor": task.tensor,
        "costs": task.costs.to_dict(),
        # Tokens that layerKvBytes stand for; 0: the engine's KV cache is the user's own figure.
        "kvTokens": 0 if own_cache else plan.kv_cache_tokens_required,
        "kvFactor": kv_factor(request),
        "devices": {
            device.uuid: {**device_facts(device), "node": node.name} for node in nodes for device in node.devices
        },
        "links": {node.name: link_facts(node) for node in nodes},
        "engine": engine(plan, request),
    }


def engine(plan: Plan, request: PlanRequest) -> dict[str, Any]:
    """What the engine is told. Sizes of the pipeline and the served name are the launcher's to add."""
    own, architecture = request.engine, request.architecture
    planned = [
        (flags.MODEL_LENGTH, str(request.max_model_len)),
        (flags.BATCHED_TOKENS, str(plan.max_num_batched_tokens)),
        (flags.SEQUENCES, str(plan.max_num_seqs)),
        (flags.KV_CACHE_BYTES, str(plan.kv_cache_bytes * kv_factor(request))),
        # Where KV cache runs out after all, the request with the latest deadline gives way, not the one that came last.
        (flags.SCHEDULING_POLICY, "priority"),
    ]
    if own.dtype != "auto" or architecture.dtype == "float32":
        # Left to itself the engine would serve a float32 checkpoint in 16 bits.
        planned.insert(0, ("--dtype", architecture.dtype))
    if own.quantization not in ("auto", "none"):
        planned.insert(0, ("--quantization", own.quantization))
    return {
        "model": own.model,
        "revision": own.revision,
        "servedName": own.served_name,
        "args": list(resolve(UserArgs(own.args), planned)),
    }


def kv_factor(request: PlanRequest) -> int:
    """How much wider the engine's KV cache is than the plan's: the CPU engine computes in float32 unless told."""
    simulated = bool(request.nodes) and all(offer.node.simulated for offer in request.nodes)
    if not simulated or request.engine.dtype != "auto":
        return 1
    return max(1, 4 // request.architecture.kv_dtype_bytes)
