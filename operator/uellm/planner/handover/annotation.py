"""The pod annotation that carries a plan to the scheduler extender: written by reconcile, read by the extender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uellm.hardware import GPU_RESOURCE, Node
from uellm.planner.assignment.assign import Task
from uellm.planner.assignment.every_subset import refusal
from uellm.planner.cost.rates import Costs
from uellm.planner.handover.revalidate import task_of
from uellm.planner.nodes.pools import pools_of_offer
from uellm.planner.request import NodeOffer, PlanRequest
from uellm.planner.result import Plan
from uellm.planner.vllm import flags as flags


def annotation(plan: Plan, request: PlanRequest) -> dict[str, Any]:
    """The content of the pod annotation `uellm.io/plan`."""
    task = task_of(plan, request)
    layers = task.fixed_layers(plan.pipeline)
    return {
        "gpus": plan.gpus_per_replica,
        "tensor": plan.tensor,
        "pipeline": plan.pipeline,
        "resourceName": resource_name(plan, request),
        "layerBytes": _one_or_all(task.layer_bytes),
        "layerKvBytes": _one_or_all(task.layer_kv_bytes),
        "firstStageBytes": task.first_bytes,
        "lastStageBytes": task.last_bytes,
        "reservedBytes": {"fixed": task.fixed_bytes, "fraction": task.margin},
        "layers": None if layers is None else list(layers),
        "layerCount": len(task.layer_bytes),
        "nodes": list(plan.nodes),
        "service": request.service,
    }


def resource_name(plan: Plan, request: PlanRequest) -> str:
    """The resource by which the pod asks for its GPUs: that of the planned devices, or of their nodes."""
    names: dict[bool, str] = {}
    for offer in sorted(request.nodes, key=lambda offer: offer.node.name):
        for device in offer.node.devices:
            if device.uuid in plan.devices or offer.node.name in plan.nodes:
                names.setdefault(device.uuid in plan.devices, device.resource_name)
    return names.get(True) or names.get(False) or GPU_RESOURCE


def fits(annotation: Mapping[str, Any], node: Node, free: Sequence[str]) -> str | None:
    """None where any choice of the node's free devices admits the annotated plan, else the sentence why not.

    Raises KeyError, TypeError or ValueError where the annotation is not one of ours.
    """
    reserved = annotation["reservedBytes"]
    layers = annotation.get("layers")
    count = int(annotation["layerCount"])
    task = Task(
        layer_bytes=_all(annotation["layerBytes"], count),
        layer_kv_bytes=_all(annotation["layerKvBytes"], count),
        first_bytes=int(annotation["firstStageBytes"]),
        last_bytes=int(annotation["lastStageBytes"]),
        fixed_bytes=int(reserved["fixed"]),
        margin=str(reserved["fraction"]),
        tensor=int(annotation["tensor"]),
        costs=Costs(),
        layers_override=None if layers is None else tuple(int(number) for number in layers),
    )
    wanted = annotation["resourceName"]
    for pool in pools_of_offer(NodeOffer(node, tuple(free))):
        if pool.resource_name == wanted:
            return refusal(pool, task, int(annotation["pipeline"]))
    return f"needs {annotation['gpus']} free {wanted} and has none"


def _one_or_all(values: Sequence[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)


def _all(value: Any, count: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * count
    return tuple(int(number) for number in value)
