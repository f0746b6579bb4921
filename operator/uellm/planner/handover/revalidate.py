"""An earlier plan checked against what is there now, and its placement task.

Everything comes from the plan and the spec, nothing from new measurements: a kept plan keeps its pods' template.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

from uellm.hardware import GPU_RESOURCE
from uellm.planner.assignment.assign import Task
from uellm.planner.assignment.every_subset import refusal
from uellm.planner.cost.demand import demand
from uellm.planner.cost.predict import Times
from uellm.planner.cost.targets import outcomes
from uellm.planner.nodes.groups import groups_of, node_names
from uellm.planner.nodes.groups import room as room_of
from uellm.planner.nodes.levels import planning_pools
from uellm.planner.nodes.pools import Pool
from uellm.planner.refusals.kinds import NodesTaken, NoneToClaim, OnNode, OtherLayers, PlanRefusal, TooFewReplicas
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.planner.search.candidate import Candidate, Evaluator
from uellm.planner.shape import Shape, Steps
from uellm.planner.vllm.flags import UserArgs


def evaluator_of(plan: Plan, request: PlanRequest) -> Evaluator:
    """The evaluator that the plan answered."""
    simulated = all(offer.node.simulated for offer in request.nodes)
    wanted = demand(request, simulated=simulated, share=plan.recommended_replicas or 1)
    if plan.kv_cache_tokens_required:
        wanted = replace(wanted, kv_tokens=plan.kv_cache_tokens_required)
    return Evaluator(request, wanted, UserArgs(request.engine.args))


def as_allocated(plan: Plan, request: PlanRequest) -> PlanRequest:
    """The request with the plan's way to give GPUs to pods."""
    return request if request.allocation == plan.allocation else replace(request, allocation=plan.allocation)


def shape_of(plan: Plan) -> Shape:
    """The plan's shape."""
    return Shape(plan.tensor, plan.pipeline)


def planned_pools(plan: Plan, request: PlanRequest) -> tuple[Pool, ...]:
    """The nodes on which the plan's replicas may be; of a plan over several nodes, the groups of as many."""
    pools = planning_pools(request)
    if plan.nodes_per_replica == 1:
        return pools
    products = {stage.product for stage in plan.stages}
    return tuple(
        group
        for group in groups_of(request, pools)
        if len(group.members) == plan.nodes_per_replica and group.devices[0].product in products
    )


def task_of(plan: Plan, request: PlanRequest) -> Task:
    """What is to be placed on whatever devices a pod gets. What images take is as planned: earlier plans had none."""
    evaluator, shape, steps = evaluator_of(plan, request), shape_of(plan), _steps(plan)
    images = plan.stages[0].memory.encoder if plan.stages else 0
    embedding = evaluator.footprint(shape, steps).embedding_bytes
    return replace(evaluator.task(shape, steps), first_bytes=embedding + images)


def resource_name(plan: Plan, request: PlanRequest) -> str:
    """The resource by which the pod requests its GPUs: that of the planned devices, else that of their nodes."""
    names: dict[bool, str] = {}
    own, named = set(plan.devices), set(plan.nodes)
    for offer in sorted(request.nodes, key=lambda offer: offer.node.name):
        for device in offer.node.devices:
            if device.uuid in own or offer.node.name in named:
                names.setdefault(device.uuid in own, device.resource_name)
        if True in names:
            break
    return names.get(True) or names.get(False) or GPU_RESOURCE


def _steps(plan: Plan) -> Steps:
    return Steps(plan.max_num_batched_tokens, plan.max_num_seqs)


def still_holds(plan: Plan, request: PlanRequest) -> PlanRefusal | None:
    """None where some nodes have room for the service's replicas, else why they have not.

    Any node counts, also one that the plan does not name: pods go wherever their plan fits.
    """
    request, layers = as_allocated(plan, request), request.architecture.layers
    if sum(plan.layers) != layers:
        return OtherLayers(sum(plan.layers), layers)
    task, room, refusals, named = task_of(plan, request), 0, list[PlanRefusal](), set(plan.nodes)
    resource = resource_name(plan, request)
    pools = [pool for pool in planned_pools(plan, request) if pool.resource_name == resource]
    # The refusal of a node that the plan was made for explains more than that of any other.
    for pool in sorted(pools, key=lambda pool: named.isdisjoint(node_names(pool, plan.gpus_per_replica))):
        cause = _lacking(plan, pool) if plan.claims else refusal(pool, task, plan.pipeline)
        if cause is None:
            room += claimed_room(plan, pool) if plan.claims else room_of(pool, plan.gpus_per_replica)
        else:
            refusals.append(OnNode(pool.node, cause))
    if room >= max(1, request.replicas):
        return None
    nodes = tuple(sorted({name for pool in pools for name in node_names(pool, plan.gpus_per_replica)}))
    if room:
        return TooFewReplicas(nodes, room, request.replicas)
    return refusals[0] if refusals else NodesTaken(plan.nodes, free=bool(planning_pools(request)))


def claimed_room(plan: Plan, pool: Pool) -> int:
    """Replicas for whose claims the pool has free GPUs: by product, the largest need decides."""
    needed, least = Counter[str](), dict[str, int]()
    for stage in plan.stages:
        needed[stage.product] += plan.tensor
        least[stage.product] = max(least.get(stage.product, 0), stage.memory_bytes)
    having = Counter(
        device.product
        for device in pool.devices
        if device.product in least and device.memory_bytes >= least[device.product]
    )
    rooms = [having[product] // count for product, count in needed.items()]
    return min(*rooms, pool.sure // plan.gpus_per_replica)


def _lacking(plan: Plan, pool: Pool) -> PlanRefusal | None:
    if claimed_room(plan, pool):
        return None
    products = tuple(sorted(Counter(stage.product for stage in plan.stages for _ in range(plan.tensor)).items()))
    return NoneToClaim(products)


class Outlook(NamedTuple):
    """What a plan is predicted to do now, and what it costs."""

    gpus_in_all: float
    """For the workload; not rounded to whole replicas, so that noise does not add one."""
    end_to_end_s: float
    """Of a mean request."""
    requests_per_s: float
    """Of a replica."""
    keeps: bool
    """Whether every class's targets are met."""


def outlook(plan: Plan, request: PlanRequest) -> Outlook | None:
    """The plan on the best of the nodes as they are measured now; None where it has no place or nothing is measured."""
    request = as_allocated(plan, request)
    evaluator, shape, sizes = evaluator_of(plan, request), shape_of(plan), _steps(plan)
    found, resource = [], resource_name(plan, request)
    for pool in planned_pools(plan, request):
        if pool.resource_name == resource and evaluator.refusal(pool, shape, sizes) is None:
            candidate = evaluator.candidate(pool, shape, sizes)
            if isinstance(candidate, Candidate) and candidate.times is not None:
                found.append(_outlook(candidate, candidate.times))
    return min(found, key=lambda entry: (not entry.keeps, entry.gpus_in_all, entry.end_to_end_s), default=None)


def _outlook(candidate: Candidate, times: Times) -> Outlook:
    request, wanted = candidate.evaluator.request, candidate.evaluator.demand
    rate = request.workload.requests_per_s
    replicas = 1.0 if rate is None else max(1.0, rate / times.requests_per_s)
    kept = not any(entry.missed for entry in outcomes(times, request.classes, wanted.output_tokens))
    seconds = times.end_to_end_s(wanted.output_tokens)
    return Outlook(candidate.shape.gpus * replicas, seconds, times.requests_per_s, kept)
