"""`uellm evaluate placement --compare allocation`: the same services on the same clusters in each allocation mode.

A service is placed if its plan keeps its targets and each of its replicas finds a node; one that is not goes away. The
plan, the check of nodes, their ranking and the choice of claimed GPUs are those of the operator and the extender.

The reference of a service is what it gets on the empty cluster with GPUs by name: the fewest GPUs for it. Services that
get nothing there are not counted: the cluster is too small for them, however its GPUs are given out.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

from uellm.errors import PlanError
from uellm.evaluate.allocation.modes import MODES, AllocationMode, ByClaim
from uellm.evaluate.allocation.world import (
    MAX_MODEL_LEN,
    ClusterState,
    GivenDevices,
    ServiceDemand,
    random_nodes,
    random_services,
)
from uellm.hardware import Node
from uellm.planner import plan as make_plan
from uellm.planner.handover.revalidate import outlook
from uellm.planner.request import NodeOffer, PlanRequest
from uellm.planner.result import Plan

TARGETS_MISSED, NO_ROOM = "TargetsMissed", "NoRoom"


class PlacedService(NamedTuple):
    """A service that runs."""

    gpus: int
    requests_per_s: float
    """Predicted for the GPUs that its pods got, all pods together."""
    devices: tuple[str, ...]


@dataclass(slots=True)
class ModeOutcome:
    """What became of the services of all clusters in one mode, by service."""

    placed: dict[str, PlacedService] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    held_h: float = 0.0
    beyond_h: float = 0.0
    """GPU hours of GPUs beyond the fewest that the service needs."""
    stranded_h: float = 0.0
    """GPU hours that refused services need, where as many GPUs were free, wherever and of whatever product."""


class Wanted(NamedTuple):
    """A service, and the fewest GPUs that it needs on the empty cluster."""

    service: ServiceDemand
    fewest: int


def compare(
    clusters: int, nodes: int, services: int, unlike_share: float, seed: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Every mode on every cluster: one entry of `results` for each mode.

    placed                  share of the services that were placed
    refused                 how many were not, by reason
    gpuHours                held; beyondNeed: of these, by GPUs that the service does not need; stranded: those of
                            services that were refused while as many GPUs as they need were free, wherever and of
                            whatever product
    wasted                  beyondNeed and stranded, as a share of the GPU hours that the services need
    gpus, requestsPerSecond GPUs and predicted rate of a service, mean over those that every mode placed
    requestsPerSecondPerGpu the predicted rate of these services over their GPUs
    """
    outcomes = {mode.name: ModeOutcome() for mode in MODES}
    wanted: list[Wanted] = []
    for number in range(clusters):
        generator = random.Random(f"{seed}/{number}")
        cluster = random_nodes(generator, nodes, unlike_share)
        own = wanted_of(cluster, _named(random_services(generator, services, _gpus(cluster)), number))
        for mode in MODES:
            play(mode(), cluster, own, outcomes[mode.name], random.Random(f"{seed}/{number}/{mode.name}"))
        wanted += own
        progress(f"{number + 1}/{clusters} clusters")
    needed_h = sum(each.fewest * each.service.stays_h for each in wanted)
    names = [each.service.name for each in wanted]
    common = [name for name in names if all(name in outcome.placed for outcome in outcomes.values())]
    return {
        "compare": "allocation",
        "clusters": clusters,
        "services": len(wanted),
        "compared": len(common),
        "neededGpuHours": needed_h,
        "results": [_result(name, outcome, len(wanted), needed_h, common) for name, outcome in outcomes.items()],
    }


def _named(services: Sequence[ServiceDemand], cluster: int) -> list[ServiceDemand]:
    return [replace(service, name=f"{service.name}-of-{cluster}") for service in services]


def _gpus(nodes: dict[str, Node]) -> int:
    return sum(len(node.devices) for node in nodes.values())


def wanted_of(nodes: dict[str, Node], services: Sequence[ServiceDemand]) -> list[Wanted]:
    """The services that the empty cluster holds, all their replicas on nodes and GPUs that are there."""
    mode = ByClaim()
    found: list[Wanted] = []
    for service in services:
        answer = place(mode, service, ClusterState(mode.nodes(nodes)), random.Random(service.name))
        if isinstance(answer, PlacedService):
            found.append(Wanted(service, answer.gpus))
    return found


def play(
    mode: AllocationMode, nodes: dict[str, Node], wanted: Sequence[Wanted], outcome: ModeOutcome, draw: random.Random
) -> ClusterState:
    """The services come and go. Returns the cluster as it is when the last one has come."""
    state = ClusterState(mode.nodes(nodes))
    leaving: list[tuple[float, tuple[str, ...]]] = []
    for service, fewest in wanted:
        while leaving and leaving[0][0] <= service.arrives_h:
            state.release(heapq.heappop(leaving)[1])
        answer = place(mode, service, state, draw)
        if isinstance(answer, str):
            outcome.refused[answer] += 1
            if sum(len(state.free(name)) for name in state.nodes) >= fewest:
                outcome.stranded_h += fewest * service.stays_h
            continue
        outcome.placed[service.name] = answer
        outcome.held_h += answer.gpus * service.stays_h
        outcome.beyond_h += max(0, answer.gpus - fewest) * service.stays_h
        heapq.heappush(leaving, (service.arrives_h + service.stays_h, answer.devices))
    return state


def place(
    mode: AllocationMode, service: ServiceDemand, state: ClusterState, draw: random.Random
) -> PlacedService | str:
    """Plan a service and give GPUs to all of its pods, or to none; then the reason."""
    request = request_for(service, mode, mode.offers(state))
    plan = planned(request)
    if isinstance(plan, str):
        return plan
    pods: list[GivenDevices] = []
    for number in range(_replicas(plan)):
        given = mode.give(plan, request, state, draw)
        if given is None:
            state.release(uuid for pod in pods for uuid in pod.devices)
            return NO_ROOM
        state.take(f"{service.name}-{number}", given)
        pods.append(given)
    rate = sum(rate_of(plan, request, state.nodes[pod.node], pod) for pod in pods)
    return PlacedService(len(pods) * plan.gpus_per_replica, rate, tuple(uuid for pod in pods for uuid in pod.devices))


def request_for(service: ServiceDemand, mode: AllocationMode, offers: tuple[NodeOffer, ...]) -> PlanRequest:
    """The planner's request."""
    return PlanRequest(
        service=service.name,
        architecture=service.architecture,
        max_model_len=MAX_MODEL_LEN,
        nodes=offers,
        classes=service.classes,
        workload=service.workload,
        allocation=mode.allocation,
    )


def planned(request: PlanRequest) -> Plan | str:
    """The plan that keeps the targets; else the reason for which there is none."""
    try:
        plan = make_plan(request)
    except PlanError as error:
        return error.reason
    return plan if plan.slo is None or plan.slo.feasible else TARGETS_MISSED


def rate_of(plan: Plan, request: PlanRequest, node: Node, pod: GivenDevices) -> float:
    """Requests a second that are predicted of a pod on the GPUs that it got."""
    found = outlook(plan, replace(request, nodes=(NodeOffer(node, pod.devices),)))
    return 0.0 if found is None else found.requests_per_s


def _replicas(plan: Plan) -> int:
    return plan.recommended_replicas or 1


def _result(mode: str, outcome: ModeOutcome, services: int, needed_h: float, common: Sequence[str]) -> dict[str, Any]:
    both = [outcome.placed[name] for name in common]
    gpus = sum(each.gpus for each in both)
    return {
        "mode": mode,
        "placed": len(outcome.placed) / services if services else 0.0,
        "refused": dict(sorted(outcome.refused.items())),
        "gpuHours": {"held": outcome.held_h, "beyondNeed": outcome.beyond_h, "stranded": outcome.stranded_h},
        "wasted": (outcome.beyond_h + outcome.stranded_h) / needed_h if needed_h else 0.0,
        "gpus": fmean(each.gpus for each in both) if both else None,
        "requestsPerSecond": fmean(each.requests_per_s for each in both) if both else None,
        "requestsPerSecondPerGpu": sum(each.requests_per_s for each in both) / gpus if gpus else None,
    }
