"""What a node must be for the pods of a plan, in terms of labels: necessary conditions, which no new node changes.

A node's labels give the number and the memory of its GPUs. Where these are identical, any scheduler can decide by
labels whether the node can hold the plan. Unlike GPUs need the scheduler extender, which knows every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from uellm.hardware import Node, NodeNeeds
from uellm.planner.assignment.assign import Task
from uellm.planner.assignment.every_subset import admits_every, memory_room
from uellm.planner.assignment.feasibility import holds
from uellm.planner.assignment.parts import part_tasks
from uellm.planner.handover.revalidate import task_of
from uellm.planner.nodes.capability import capability_bound, least_capability
from uellm.planner.nodes.pools import known_pools
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan


def node_needs(plan: Plan, request: PlanRequest, resource_name: str) -> NodeNeeds:
    """What a node must be for the plan, or to be one of the nodes that a replica spans."""
    task = task_of(plan, request)
    own = _own_nodes(plan, request)
    simulated = bool(own) and all(node.simulated for node in own)
    known = [device.memory_bytes for node in own for device in node.devices if device.resource_name == resource_name]
    most = max([*known, *(stage.memory_bytes for stage in plan.stages)], default=0) >> 20
    stages = plan.pipeline // plan.nodes_per_replica
    parts = [task] if plan.nodes_per_replica == 1 else part_tasks(task, plan.layers, plan.nodes_per_replica)
    return NodeNeeds(
        resource_name=resource_name,
        gpus=plan.gpus_per_replica // plan.nodes_per_replica,
        memory_mib=min(least_memory_mib(each, stages, most) for each in parts),
        # Others may hold the GPUs of a planned node that are too small, and its label tells the smallest of all.
        smallest_mib=min([*(_smallest_mib(each, stages, most) for each in parts), *(bytes_ >> 20 for bytes_ in known)]),
        # Simulated GPUs run on the CPU, whatever their product.
        capability=None if simulated else least_capability(request),
        capability_below=None if simulated else capability_bound(request),
        products=_products(plan, request, task, resource_name),
        simulated=simulated,
    )


def least_memory_mib(task: Task, stages: int, most: int) -> int:
    """The least memory with which `stages` groups of GPUs that are all alike hold the task; at most `most` MiB."""
    return _least(most, lambda mib: holds([memory_room(mib << 20, task)] * stages, task))


def _smallest_mib(task: Task, stages: int, most: int) -> int:
    """The least memory with which one GPU can be a stage, whatever the others are: the smallest layer and nothing else.

    A first or last stage of two needs more, so this is not enough; the extender checks the rest.
    """
    if stages == 1:
        return least_memory_mib(task, 1, most)
    layer = min(weights + kv for weights, kv in zip(task.layer_bytes, task.layer_kv_bytes, strict=True))
    ends = 0 if stages > 2 else min(task.first_bytes, task.last_bytes)
    return _least(most, lambda mib: memory_room(mib << 20, task) >= layer + ends)


def _least(most: int, enough: Callable[[int], bool]) -> int:
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def _products(plan: Plan, request: PlanRequest, task: Task, resource_name: str) -> tuple[str, ...]:
    """The products on the plan's nodes, if some other node would hold the plan and was left out: it is too slow."""
    if plan.nodes_per_replica > 1:
        # The nodes of a group have GPUs of one product.
        return tuple(sorted({stage.product for stage in plan.stages if stage.product}))
    own = _own_nodes(plan, request)
    chosen, others = _products_on(own, resource_name), set[str]()
    simulated, named = any(node.simulated for node in own), set(plan.nodes)
    for offer in request.nodes:
        if offer.node.name in named or offer.closed or offer.node.simulated != simulated:
            continue
        for pool in known_pools(offer):
            # A pool whose products are all known to suffice adds nothing.
            products = {device.product for device in pool.devices}
            if pool.resource_name == resource_name and not products <= others | chosen:
                others |= products if admits_every(pool, task, plan.pipeline) else set()
    return tuple(sorted(chosen)) if others - chosen and "" not in chosen else ()


def _own_nodes(plan: Plan, request: PlanRequest) -> list[Node]:
    named = set(plan.nodes)
    return [offer.node for offer in request.nodes if offer.node.name in named]


def _products_on(nodes: Iterable[Node], resource_name: str) -> set[str]:
    return {device.product for node in nodes for device in node.devices if device.resource_name == resource_name}
