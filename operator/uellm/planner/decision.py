"""The plan: the search's result with its reasons, in the form in which it is stored."""

from __future__ import annotations

from dataclasses import replace

from uellm.errors import PlanError
from uellm.hardware import DEVICE_PLUGIN, DRA
from uellm.planner import constants as c
from uellm.planner.cost.predict import tpot_ms
from uellm.planner.cost.targets import outcomes
from uellm.planner.explanation import best_effort, reasons
from uellm.planner.explanation.limits import binding
from uellm.planner.explanation.no_fit import fits_over_nodes, no_plan
from uellm.planner.nodes.facts import profile_hash
from uellm.planner.nodes.groups import groups_of, node_names
from uellm.planner.nodes.levels import planning_pools
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan, Predicted, SearchFigures, SloVerdict
from uellm.planner.search import ranking
from uellm.planner.search.candidate import Candidate
from uellm.planner.search.overrides import check
from uellm.planner.search.search import PlacedShape, Search, SearchResult


def plan(request: PlanRequest) -> Plan:
    """The plan for a service.

    If the targets cannot be met, the plan is for the nearest possible ones, and its `slo` says so. Raises PlanError:
    NoProfile (no node is profiled), InvalidOverride (an override of the user cannot work), NoFit (no node has enough
    room or free GPUs), NeedsExactDevices (it would fit only on devices of our choice).
    """
    # Nodes that take no new pods are known, but nothing is planned on them.
    request = replace(request, nodes=tuple(offer for offer in request.nodes if not offer.closed))
    check(request)
    if not request.nodes and request.left_out:
        raise PlanError(
            "NoFit", f"none of the profiled nodes may run the pods: {'; '.join(map(str, request.left_out))}"
        )
    if not request.nodes:
        raise PlanError("NoProfile", "no node has a GPUNodeProfile yet: is the profiler running on the GPU nodes?")
    tried = _searched(request)
    search, found = tried[-1]
    if found.best is not None:
        return _plan(request, search, found, _verdict(request, found.best.best))
    for each, result in tried:
        if any(entry.refused.missed for entry in result.rejections):
            looser, reached, verdict = _best_effort(each, result)
            if reached.best is not None:
                return _plan(request, looser, reached, verdict or _verdict(request, reached.best.best))
    raise no_plan(search, found.rejections, spanning=_over_nodes(request))


def _searched(request: PlanRequest) -> list[tuple[Search, SearchResult]]:
    """The search of single nodes and, where none of them holds a replica within the targets, of groups of nodes too."""
    pools = planning_pools(request)
    search = Search(request, pools)
    tried = [(search, search.run())]
    if request.multi_node and tried[0][1].best is None and (groups := groups_of(request, pools)):
        wider = Search(request, pools, groups)
        tried.append((wider, wider.run()))
    return tried


def _over_nodes(request: PlanRequest) -> Plan | None:
    """The plan that several nodes would allow; None where they were looked at already, or would not help."""
    if request.multi_node and request.allocation != DRA:
        return None
    wider = replace(request, multi_node=True, allocation=DEVICE_PLUGIN)
    pools = planning_pools(wider)
    if not any(fits_over_nodes(wider, group) for group in groups_of(wider, pools)):
        return None
    try:
        return plan(wider)
    except PlanError:
        return None


def _best_effort(search: Search, found: SearchResult) -> tuple[Search, SearchResult, SloVerdict | None]:
    """The plan for the nearest possible targets, and which of the requested ones cannot be met."""
    best = best_effort.nearest(search)
    if best is None or not best.missed:
        return search, found, None
    verdict = SloVerdict(False, best_effort.constraint(best), best_effort.change(best))
    for looser in best_effort.relaxed(search.request, best):
        again = search.again(looser)
        if (reached := again.run()).best is not None:
            return again, reached, verdict
    return search, found, None


def _verdict(request: PlanRequest, best: Candidate) -> SloVerdict | None:
    """None if there is no target or no prediction."""
    if best.times is None or not outcomes(best.times, request.classes, 1):
        return None
    return SloVerdict(True)


def _plan(request: PlanRequest, search: Search, found: SearchResult, verdict: SloVerdict | None) -> Plan:
    assert found.best is not None
    like = _alike(found.best)
    nodes = _writable(like, max(1, len(found.best.best.pool.members)))
    best = nodes[0][1]
    limits = binding(best, found.best.replicas, request.classes)
    return Plan(
        gpus_per_replica=best.shape.gpus,
        tensor=best.shape.tensor,
        pipeline=best.shape.pipeline,
        layers=best.assignment.layers,
        max_num_batched_tokens=best.sizes.batched_tokens,
        max_num_seqs=best.sizes.sequences,
        kv_cache_bytes=best.kv.flag_bytes,
        kv_cache_tokens_required=best.evaluator.demand.kv_tokens,
        stages=best.stages(),
        nodes=tuple(name for name, _ in nodes),
        predicted=_predicted(best),
        recommended_replicas=None if request.workload.requests_per_s is None else found.best.replicas,
        assumptions=reasons.assumptions(
            best,
            found.best,
            left_out=len(like) - len(nodes),
            unproven_after=None if found.proven else search.sizer.attempts,
        ),
        alternatives=reasons.alternatives(search, found),
        profile_hash=profile_hash(offer.node for offer in request.nodes),
        binding=limits,
        slo=verdict,
        search=_figures(search, found, best),
        adapters=request.adapters,
        allocation=request.allocation,
        nodes_per_replica=max(1, len(best.pool.members)),
    )


def _alike(chosen: PlacedShape) -> list[tuple[str, Candidate]]:
    """Every node that works with the best one's step sizes and KV cache (all pods share a template), best first."""
    best = chosen.best
    if best.pool.members:
        # The nodes of a group have GPUs of one kind, so no other group's are among them.
        return [(name, best) for name in node_names(best.pool, best.shape.gpus)]
    entries: list[tuple[ranking.Key, str, Candidate]] = []
    for entry, candidate in chosen.members:
        same = entry.pool.simulated == best.pool.simulated and entry.pool.resource_name == best.pool.resource_name
        same = same and not entry.pool.members
        found = _with_sizes_of(best, candidate) if same else None
        if found is not None and _claims_alike(best, found):
            key = ranking.key(found, chosen.replicas, placed=chosen.placed)[:-1]
            entries += [(key, pool.node, found) for pool in entry.pools]
    entries.sort(key=lambda each: each[:2])
    return [(name, candidate) for _, name, candidate in entries]


def _claims_alike(best: Candidate, other: Candidate) -> bool:
    """Whether one ResourceClaim asks for both: it names the product of each stage."""
    if best.evaluator.request.allocation != DRA:
        return True
    one, another = (
        [(group[0].product, group[0].compute_capability) for group in each.assignment.groups] for each in (best, other)
    )
    return one == another


def _with_sizes_of(best: Candidate, other: Candidate) -> Candidate | None:
    evaluator = best.evaluator
    if other is best or (other.sizes == best.sizes and other.evaluator is evaluator):
        return other
    if evaluator.refusal(other.pool, best.shape, best.sizes) is not None:
        return None
    found = evaluator.candidate(other.pool, best.shape, best.sizes)
    if isinstance(found, PlanRefusal):
        return None
    if found.times is not None and any(
        entry.missed for entry in outcomes(found.times, evaluator.request.classes, evaluator.demand.output_tokens)
    ):
        return None
    return found


def _writable(like: list[tuple[str, Candidate]], least: int) -> list[tuple[str, Candidate]]:
    """As many of the best nodes as plan.json has room for, counting their devices and links; `least` at least."""
    entries, kept = 0, list[tuple[str, Candidate]]()
    for name, candidate in like:
        one = candidate.pool.members[0] if candidate.pool.members else candidate.pool
        entries += len(one.devices) + len(one.links)
        if len(kept) >= least and entries > c.MOST_FACTS:
            break
        kept.append((name, candidate))
    return kept


def _predicted(best: Candidate) -> Predicted:
    times = best.times
    if times is None:
        return Predicted(best.kv.tokens)
    return Predicted(best.kv.tokens, times.ttft_s * 1e3, tpot_ms(times), times.requests_per_s)


def _figures(search: Search, found: SearchResult, best: Candidate) -> SearchFigures:
    cost, least = best.assignment.cost, best.assignment.lower_bound
    gap = max(0.0, (cost - least) / cost) if cost else 0.0
    looked = len(found.others) + len(found.rejections) + 1
    return SearchFigures(
        shapes=looked + len(found.bounded),
        left_out=len(found.bounded),
        placements=search.sizer.attempts,
        gap=gap,
    )
