"""A kept plan with what is predicted of it now: its targets, its load or its GPUs have changed, its shape has not."""

from __future__ import annotations

import math
from dataclasses import replace

from uellm.planner.cost.predict import tpot_ms
from uellm.planner.cost.targets import outcomes
from uellm.planner.explanation.limits import binding
from uellm.planner.handover.revalidate import as_allocated, evaluator_of, planned_pools, shape_of
from uellm.planner.nodes.groups import node_names
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan, Predicted, SloVerdict
from uellm.planner.search.candidate import Candidate
from uellm.planner.shape import Steps
from uellm.planner.target_outcome import TargetOutcome
from uellm.planner.units import milliseconds


def revised(plan: Plan, request: PlanRequest, fresh: Plan | None) -> Plan:
    """The plan with a new prediction, verdict and number of replicas; `fresh`: the plan that would be made now.

    It is returned as it is where nothing is predicted of it. The parts that pods are built from never change.
    """
    replicas = _replicas(plan, request)
    found = _candidate(replace(plan, recommended_replicas=replicas), request)
    if found is None or found.times is None:
        return plan
    times = found.times
    met = outcomes(times, request.classes, found.evaluator.demand.output_tokens)
    predicted = Predicted(plan.predicted.kv_cache_tokens, times.ttft_s * 1e3, tpot_ms(times), times.requests_per_s)
    return replace(
        plan,
        predicted=predicted,
        recommended_replicas=replicas,
        binding=binding(found, replicas or 1, request.classes),
        slo=_verdict(met, fresh),
    )


def _replicas(plan: Plan, request: PlanRequest) -> int | None:
    """Replicas that the load needs, each at the rate that one of them can serve within the targets."""
    rate = request.workload.requests_per_s
    if rate is None:
        return None
    found = _candidate(plan, request)
    if found is None or found.times is None:
        return plan.recommended_replicas
    return max(1, math.ceil(rate / found.times.requests_per_s - 1e-9))


def _candidate(plan: Plan, request: PlanRequest) -> Candidate | None:
    """The plan on the best of its nodes as they are measured now."""
    request = as_allocated(plan, request)
    evaluator, shape = evaluator_of(plan, request), shape_of(plan)
    sizes = Steps(plan.max_num_batched_tokens, plan.max_num_seqs)
    found = []
    named = set(plan.nodes)
    for pool in planned_pools(plan, request):
        if (
            not named.isdisjoint(node_names(pool, plan.gpus_per_replica))
            and evaluator.refusal(pool, shape, sizes) is None
        ):
            candidate = evaluator.candidate(pool, shape, sizes)
            if isinstance(candidate, Candidate) and candidate.times is not None:
                found.append((candidate.times.end_to_end_s(evaluator.demand.output_tokens), pool.node, candidate))
    return min(found, key=lambda entry: entry[:2], default=(0.0, "", None))[2]


def _verdict(met: list[TargetOutcome], fresh: Plan | None) -> SloVerdict | None:
    missed = [each for each in met if each.missed]
    if not missed:
        return SloVerdict(True) if met else None
    if fresh is not None and fresh.slo is not None and not fresh.slo.feasible:
        return fresh.slo  # no plan meets them, so it is not this plan's fault
    parts = [
        f"{each.name} {milliseconds(each.target_s)} of class {each.class_name}: {milliseconds(each.predicted_s)} is "
        "predicted of the running plan"
        for each in missed
    ]
    return SloVerdict(False, "; ".join(parts), "another plan, see BetterPlan" if fresh is not None else "other GPUs")
