"""Planning for nodes that are not there yet: on classes of nodes that may join, and what follows when one joins.

Nodes that are there come first. Where no plan is possible on them, every class is planned on as if as many of its nodes
were there as are needed. The best class is chosen by the service's objective; with Efficiency it is the one whose nodes
have the fewest GPUs in all, then the least memory.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from uellm.errors import PlanError
from uellm.hardware import AUTO, DEVICE_PLUGIN, class_place
from uellm.planner import allocation, decision
from uellm.planner.handover.revalidate import (
    evaluator_of,
    outlook,
    planned_pools,
    resource_name,
    shape_of,
    still_holds,
)
from uellm.planner.host_needs import host_memory_bytes, host_millicores
from uellm.planner.nodes.groups import copied_offer, node_names
from uellm.planner.nodes.levels import levelled
from uellm.planner.nodes.pools import known_pools
from uellm.planner.refusals.sentences import sentence
from uellm.planner.request import NodeOffer, PlanRequest
from uellm.planner.result import Plan, Stage
from uellm.planner.search.candidate import Candidate
from uellm.planner.shape import Steps
from uellm.planner.units import size

# Reasons that another node could remove.
_HELPED_BY_NODES = ("NoProfile", "NoFit", "NeedsExactDevices")


def plan(request: PlanRequest) -> Plan:
    """The plan for a service on the nodes that are there, else for nodes that may join.

    Raises PlanError as `uellm.planner.decision.plan` does.
    """
    try:
        return allocation.plan(replace(request, would_join=()))
    except PlanError as error:
        if not request.would_join or error.reason not in _HELPED_BY_NODES:
            raise
        return _plan_on_classes(request, str(error))


def _plan_on_classes(request: PlanRequest, why: str) -> Plan:
    found, refused = list[tuple[Any, Plan, NodeOffer]](), list[str]()
    for offer in request.would_join:
        try:
            made = decision.plan(_on_class(request, offer))
        except PlanError as error:
            refused.append(f"{offer.node.name}: {error}")
            continue
        if short := _host_shortage(made, request, offer):
            refused.append(f"{offer.node.name}: {short}")
        else:
            found.append((_order(made, request, offer), made, offer))
    if not found:
        raise PlanError("NoFit", "; ".join((why, *refused)))
    _, best, chosen = min(found, key=lambda entry: entry[0])
    others = [each for each in request.would_join if each is not chosen and _serves(best, request, each)]
    return _without_devices(best, (chosen.node_class, *(each.node_class for each in others)), why)


def _on_class(request: PlanRequest, offer: NodeOffer) -> PlanRequest:
    # What a driver will publish there is not known.
    way = DEVICE_PLUGIN if request.allocation == AUTO else request.allocation
    return replace(request, nodes=(offer,), would_join=(), left_out=(), allocation=way)


def _host_shortage(made: Plan, request: PlanRequest, offer: NodeOffer) -> str:
    """What the node lacks besides GPUs; empty for nothing, or where it is not known."""
    _, joined = as_joined(replace(made, node_classes=(offer.node_class,)), replace(request, would_join=(offer,)))
    needed = host_memory_bytes(made, joined, simulated=offer.node.simulated)
    if offer.host_memory_bytes is not None and needed > offer.host_memory_bytes:
        return f"a replica needs {size(needed)} of host memory and the node has {size(offer.host_memory_bytes)}"
    cores = host_millicores(made, simulated=offer.node.simulated)
    if offer.host_millicores is not None and cores > offer.host_millicores:
        return f"a replica needs {cores / 1000:g} CPU cores and the node has {offer.host_millicores / 1000:g}"
    return ""


def _order(made: Plan, request: PlanRequest, offer: NodeOffer) -> Any:
    """Smaller is better: targets first, then one node before several, then the objective, then what has to join."""
    head = made.slo is not None and not made.slo.feasible, made.nodes_per_replica > 1
    replicas = made.recommended_replicas or request.replicas
    each = made.gpus_per_replica // made.nodes_per_replica
    nodes = math.ceil(replicas / max(1, len(offer.free) // each)) * made.nodes_per_replica
    memory_bytes = sum(device.memory_bytes for device in offer.node.devices)
    joining = (nodes * len(offer.free), nodes * memory_bytes, offer.node.name)
    now = outlook(made, _on_class(request, offer))
    if request.objective == "Latency":
        return (*head, math.inf if now is None else now.end_to_end_s, *joining)
    if request.objective == "Throughput":
        return (*head, math.inf if now is None else -now.requests_per_s, *joining)
    return (*head, *joining)


def _serves(best: Plan, request: PlanRequest, offer: NodeOffer) -> bool:
    """Whether nodes of another class serve the plan as well: pods may go there, too."""
    alone = replace(_on_class(request, offer), replicas=1)
    named = replace(best, nodes=(offer.node.name,))
    if still_holds(named, alone) is not None or _host_shortage(named, request, offer):
        return False
    now = outlook(named, alone)
    return now is None or now.keeps or (best.slo is not None and not best.slo.feasible)


def _without_devices(best: Plan, classes: tuple[str, ...], why: str) -> Plan:
    """The plan without the made-up devices of the class."""
    joining = "have" if best.nodes_per_replica > 1 else "has"
    note = f"planned for {_joining_nodes(best)} of {class_place(classes[0])} that {joining} not joined: {why}"
    return replace(
        best,
        nodes=(),
        node_classes=classes,
        stages=tuple(replace(stage, devices=()) for stage in best.stages),
        alternatives=tuple(replace(each, nodes=()) for each in best.alternatives),
        assumptions=(note, *best.assumptions),
    )


def _joining_nodes(made: Plan) -> str:
    return "a node" if made.nodes_per_replica == 1 else f"{made.nodes_per_replica} nodes"


def as_joined(made: Plan, request: PlanRequest) -> tuple[Plan, PlanRequest]:
    """Plan and request as if a node of each class had joined; as they are for a plan on nodes that are there."""
    own = [offer for offer in request.would_join if offer.node_class in made.node_classes]
    if not own:
        return made, request
    simulated = own[0].node.simulated
    more = (copied_offer(own[0], number) for number in range(1, made.nodes_per_replica))
    offers = (*request.nodes, *request.would_join, *more)
    nodes = tuple(offer for offer in offers if offer.node.simulated == simulated)
    there = replace(request, nodes=nodes, would_join=())
    return _with_devices(replace(made, nodes=tuple(offer.node.name for offer in own)), there, own[0]), there


def _with_devices(made: Plan, request: PlanRequest, offer: NodeOffer) -> Plan:
    """The plan with the made-up devices of a class, as the search placed it there."""
    evaluator, sizes = evaluator_of(made, request), Steps(made.max_num_batched_tokens, made.max_num_seqs)
    alone = replace(request, nodes=(offer,))
    for pool in planned_pools(made, alone) if made.nodes_per_replica > 1 else levelled(known_pools(offer)):
        found = evaluator.candidate(pool, shape_of(made), sizes)
        if isinstance(found, Candidate) and found.assignment.layers == made.layers:
            return replace(made, stages=_on_devices(made, found))
    return made


def _on_devices(made: Plan, found: Candidate) -> tuple[Stage, ...]:
    """The stages on the devices of a candidate with the same layers."""
    return tuple(
        replace(stage, devices=tuple(device.uuid for device in group))
        for stage, group in zip(made.stages, found.assignment.groups, strict=True)
    )


def broken(made: Plan, request: PlanRequest) -> str:
    """Why no class holds a plan for nodes that have not joined any more; empty where one does."""
    reasons = []
    for name in made.node_classes:
        offer = next((each for each in request.would_join if each.node_class == name), None)
        if offer is None:
            place = class_place(name)
            left_out = (str(each) for each in request.left_out if each.place == place)
            reasons.append(next(left_out, f"{place} is gone"))
            continue
        alone = replace(_on_class(request, offer), replicas=1)
        refusal = still_holds(replace(made, nodes=(offer.node.name,)), alone)
        if refusal is None:
            return ""
        reasons.append(sentence(refusal))
    return "; ".join(reasons)


def joined(made: Plan, request: PlanRequest) -> Plan | None:
    """A plan for nodes that have not joined, on the nodes that are there and hold it now; None where none does.

    The parts that pods are built from stay as they are.
    """
    if not request.nodes:
        return None
    resource = resource_name(*as_joined(made, request))
    evaluator, shape = evaluator_of(made, request), shape_of(made)
    sizes = Steps(made.max_num_batched_tokens, made.max_num_seqs)
    found = []
    for pool in (each for each in planned_pools(made, request) if each.resource_name == resource):
        names = node_names(pool, made.gpus_per_replica)
        alone = replace(request, nodes=tuple(each for each in request.nodes if each.node.name in names), replicas=1)
        if still_holds(replace(made, nodes=names), alone) is not None:
            continue
        candidate = evaluator.candidate(pool, shape, sizes)
        seconds = math.inf
        if isinstance(candidate, Candidate) and candidate.times is not None:
            seconds = candidate.times.end_to_end_s(evaluator.demand.output_tokens)
        found.append((seconds, names, candidate))
    if not found:
        return None
    ordered = sorted(found, key=lambda entry: entry[:2])
    stages, best = made.stages, ordered[0][2]
    if isinstance(best, Candidate) and best.assignment.layers == made.layers:
        stages = _on_devices(made, best)
    nodes = tuple(dict.fromkeys(name for _, names, _ in ordered for name in names))
    return replace(made, nodes=nodes, node_classes=(), stages=stages, assumptions=_told(made, nodes))


def _told(made: Plan, nodes: tuple[str, ...]) -> tuple[str, ...]:
    """The assumptions, the one about the class replaced by what came of it."""
    classes = ", ".join(map(class_place, made.node_classes))
    several = made.nodes_per_replica > 1
    holding = f"{' and '.join(nodes[: made.nodes_per_replica])} hold" if several else f"{nodes[0]} holds"
    first = f"planned for {_joining_nodes(made)} of {classes}; {holding} the plan as it is"
    return (first, *made.assumptions[1:])
