"""The search: the fewest GPUs that fit, over the shapes of each count, over the nodes; ties by what is predicted.

Objective Efficiency stops at the first count of GPUs that some node admits. Latency and Throughput look at every
count that `placement.gpus` allows and weigh a further GPU as the policy says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from uellm.errors import PlanError
from uellm.planner import explain
from uellm.planner.candidate import Candidate, Question
from uellm.planner.demand import demand
from uellm.planner.engine_args import UserArgs
from uellm.planner.facts import profile_hash
from uellm.planner.footprint import Shape
from uellm.planner.pools import pools_of
from uellm.planner.request import PlanRequest
from uellm.planner.result import Alternative, Plan, Predicted
from uellm.planner.shapes import check, shapes
from uellm.planner.subsets import Pool

# The load is halved so often before it is given up that one replica should carry it: 2 ** 10 replicas.
MOST_HALVINGS = 10
MOST_ALTERNATIVES = 8
# Devices and links whose facts plan.json carries: some hundred bytes each, and a ConfigMap holds 1 MiB.
MOST_FACTS = 4000


@dataclass(frozen=True, slots=True)
class Rejection:
    """A shape that no node admits, with the reason of the node that comes nearest to it."""

    shape: Shape
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came upon: the best candidate of each shape that fits, and the shapes that do not."""

    candidates: tuple[Candidate, ...]
    rejections: tuple[Rejection, ...]


def plan(request: PlanRequest) -> Plan:
    """The plan for a service.

    Raises PlanError: NoProfile (no node is profiled), InvalidOverride (what the user decided cannot work), NoFit
    (nothing is large or free enough), NeedsExactDevices (it would fit if the devices were ours to choose).
    """
    check(request)
    if not request.nodes:
        raise PlanError("NoProfile", "no node has a GPUNodeProfile yet: is the profiler running on the GPU nodes?")
    pools = pools_of(request)
    simulated = all(offer.node.simulated for offer in request.nodes)
    found = Found((), ())
    share = 1
    for power in range(MOST_HALVINGS + 1):
        wanted = demand(request, simulated=simulated, share=1 << power)
        question = Question(request, wanted, UserArgs(request.engine.args))
        found = search(question, pools)
        if found.candidates:
            share = 1 << power
            break
        if wanted.kv_tokens == demand(request, simulated=simulated, share=1 << MOST_HALVINGS).kv_tokens:
            break  # a smaller load asks for no less
    if not found.candidates:
        raise explain.no_plan(question, pools, found.rejections)
    return _plan(question, pools, found, share)


def search(question: Question, pools: Sequence[Pool]) -> Found:
    """The candidates that the objective leaves to choose from, the best first, and what was rejected."""
    request = question.request
    most = max((pool.sure for pool in pools), default=0)
    if request.gpus_max is not None:
        most = min(most, request.gpus_max)
    candidates: list[Candidate] = []
    rejections: list[Rejection] = []
    for gpus in range(request.gpus_min, most + 1):
        for shape in shapes(request, gpus):
            outcome = _best_of(question, pools, shape)
            if isinstance(outcome, Candidate):
                candidates.append(outcome)
            else:
                rejections.append(outcome)
        if candidates and request.objective == "Efficiency" and gpus > candidates[0].shape.gpus:
            break  # one count more is looked at, to tell what it would bring
    return Found(tuple(sorted(candidates, key=lambda candidate: rank(candidate))), tuple(rejections))


def rank(candidate: Candidate) -> tuple[Any, ...]:
    """Smaller is better; what is not measured comes after what is."""
    request, gpus = candidate.question.request, candidate.shape.gpus
    times, output = candidate.times, candidate.question.demand.output_tokens
    seconds = math.inf if times is None else times.end_to_end_s(output)
    unmeasured = (not explain.fast_links(candidate), -candidate.kv.tokens, candidate.assignment.cost)
    tie = (*unmeasured, candidate.shape.tensor, candidate.pool.node)
    if request.objective == "Throughput":
        return (-(times.requests_per_s if times else 0.0), gpus, *tie)
    if request.objective == "Latency" and request.policy != "HE":
        # HELR: a further GPU must save a second a request; LR: a tenth of one.
        weight = 10.0 if request.policy == "LR" else 1.0
        return (weight * seconds + gpus, *tie)
    return (gpus, seconds, *tie)


def _best_of(question: Question, pools: Sequence[Pool], shape: Shape) -> Candidate | Rejection:
    """The shape on the node where it does best, or the reason of the node that comes nearest."""
    admitted: list[Candidate] = []
    refused: list[tuple[tuple[Any, ...], Rejection]] = []
    for pool in pools:
        sizes = question.steps(pool.devices, shape, pool.links)
        reason = question.refusal(pool, shape, sizes)
        outcome = reason if reason is not None else question.candidate(pool, shape, sizes)
        if isinstance(outcome, Candidate):
            admitted.append(outcome)
        else:
            nearness = (-min(pool.sure, shape.gpus), -sum(device.memory_bytes for device in pool.devices), pool.node)
            refused.append((nearness, Rejection(shape, pool.node, outcome)))
    if admitted:
        return min(admitted, key=rank)
    return min(refused, key=lambda entry: entry[0])[1]


def _candidates_like(best: Candidate, pools: Iterable[Pool]) -> list[Candidate]:
    """Every node that admits the best candidate's shape with its step sizes, the best first."""
    question, like = best.question, [best]
    for pool in pools:
        if pool.node == best.pool.node or (pool.simulated, pool.resource_name) != (
            best.pool.simulated,
            best.pool.resource_name,
        ):
            continue
        if question.refusal(pool, best.shape, best.sizes) is None:
            other = question.candidate(pool, best.shape, best.sizes)
            if isinstance(other, Candidate):
                like.append(other)
    return sorted(like, key=lambda candidate: (rank(candidate), len(candidate.pool.devices)))


def _writable(candidates: list[Candidate]) -> list[Candidate]:
    """As many of the best nodes as plan.json has room for with the facts of all their devices and links."""
    entries, kept = 0, list[Candidate]()
    for candidate in candidates:
        entries += len(candidate.pool.devices) + len(candidate.pool.links)
        if kept and entries > MOST_FACTS:
            break
        kept.append(candidate)
    return kept


def _plan(question: Question, pools: Sequence[Pool], found: Found, share: int) -> Plan:
    best = found.candidates[0]
    like = _candidates_like(best, pools)
    nodes = _writable(like)
    best = nodes[0]
    return Plan(
        gpus_per_replica=best.shape.gpus,
        tensor=best.shape.tensor,
        pipeline=best.shape.pipeline,
        layers=best.assignment.layers,
        max_num_batched_tokens=best.sizes.batched_tokens,
        max_num_seqs=best.sizes.sequences,
        kv_cache_bytes=best.kv.bytes_told,
        kv_cache_tokens_required=question.demand.kv_tokens,
        stages=best.stages(),
        nodes=tuple(candidate.pool.node for candidate in nodes),
        predicted=_predicted(best),
        recommended_replicas=_replicas(best, share),
        assumptions=explain.assumptions(best, left_out=len(like) - len(nodes)),
        alternatives=_alternatives(best, found),
        profile_hash=profile_hash(offer.node for offer in question.request.nodes),
    )


def _predicted(best: Candidate) -> Predicted:
    times = best.times
    if times is None:
        return Predicted(best.kv.tokens)
    return Predicted(best.kv.tokens, times.ttft_s * 1e3, times.tpot_s * 1e3, times.requests_per_s)


def _replicas(best: Candidate, share: int) -> int | None:
    """How many replicas the workload needs: by KV cache, and by the predicted rate where speeds are known."""
    rate = best.question.request.workload.requests_per_s
    if rate is None:
        return None
    by_rate = 1 if best.times is None else math.ceil(rate / best.times.requests_per_s)
    return max(share, by_rate)


def _alternatives(best: Candidate, found: Found) -> tuple[Alternative, ...]:
    """What else was looked at: as many GPUs first, then fewer, then more."""
    others = [
        (_distance(candidate.shape, best.shape), explain.lost(candidate, best))
        for candidate in found.candidates
        if candidate.shape != best.shape
    ]
    others += [(_distance(entry.shape, best.shape), explain.refused(entry)) for entry in found.rejections]
    return tuple(alternative for _, alternative in sorted(others, key=lambda entry: entry[0])[:MOST_ALTERNATIVES])


def _distance(shape: Shape, best: Shape) -> tuple[int, int, int]:
    kind = 0 if shape.gpus == best.gpus else 1 if shape.gpus < best.gpus else 2
    return kind, abs(shape.gpus - best.gpus), shape.tensor
