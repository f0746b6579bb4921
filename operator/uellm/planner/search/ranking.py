"""Which of two placements is better: keys for comparison, and lower bounds of a key.

    Efficiency  GPUs in all, then the policy's weight of time and GPUs, then time. A replica's GPUs count as the next
                power of two, for the rest of them in a node is of little use. A pipeline over NVLink counts as slower
                than predicted
    Latency     time with the fewest replicas that do, then GPUs in all (policy HE: as Efficiency)
    Throughput  requests a second of a replica, then GPUs in all

Two criteria come before these. A plan that is predicted to meet its targets precedes one without a prediction. Replicas
that have room now precede those that do not. The policy's weights are those of placement_policies.py, for the seconds
of a mean request and the GPUs of a replica.
"""

from __future__ import annotations

import math
from typing import Any

from uellm.placement_policies import policy_weights
from uellm.planner import constants as c
from uellm.planner.nodes.tensor_groups import fast_links
from uellm.planner.request import PlanRequest
from uellm.planner.search.candidate import Candidate

Key = tuple[Any, ...]


def key(candidate: Candidate, replicas: int, *, placed: bool) -> Key:
    """Smaller is better. `placed`: there is room for all replicas now."""
    request, times = candidate.evaluator.request, candidate.times
    seconds = math.inf if times is None else times.end_to_end_s(candidate.evaluator.demand.output_tokens)
    if request.objective == "Efficiency" and candidate.shape.pipeline > 1 and _could_share_layers(candidate):
        seconds *= c.PIPELINE_CAUTION
    rate = times.requests_per_s if times else 0.0
    unmeasured = (not fast_links(candidate.assignment.groups, candidate.pool.links), -candidate.kv.tokens)
    tie = (*unmeasured, candidate.assignment.cost, candidate.shape.tensor, candidate.pool.node)
    return (*_head(candidate, placed=placed), *_body(request, candidate.shape.gpus, replicas, seconds, rate), *tie)


def bound(ideal: Candidate, replicas: int, *, placed: bool) -> Key:
    """A lower bound of the key of any candidate of the shape on the nodes for which `ideal` is the ideal one."""
    request, times = ideal.evaluator.request, ideal.times
    seconds = rate = math.inf
    if times is not None:
        seconds = times.end_to_end_s(ideal.evaluator.demand.output_tokens) * c.IDEAL_SLACK
        rate = times.requests_per_s / c.IDEAL_SLACK
    elif request.objective == "Throughput":
        rate = 0.0
    return (*_head(ideal, placed=placed), *_body(request, ideal.shape.gpus, replicas, seconds, rate))


def _could_share_layers(candidate: Candidate) -> bool:
    """Whether the GPUs of a node are all linked by NVLink, so that they could as well share each layer.

    In a group of nodes each of which holds one stage, they do.
    """
    groups, nodes = candidate.assignment.groups, max(1, len(candidate.pool.members))
    each = len(groups) // nodes
    on_first = [device for group in groups[:each] for device in group]
    return each > 1 and fast_links([on_first], candidate.pool.links)


def least(request: PlanRequest, gpus: int) -> Key:
    """A lower bound of the key if only the GPUs of a shape are known."""
    return (0, False, *_body(request, gpus, 1, 0.0, math.inf))


def _head(candidate: Candidate, *, placed: bool) -> Key:
    request = candidate.evaluator.request
    asked = bool(request.classes) or request.workload.requests_per_s is not None
    return (1 if asked and candidate.times is None else 0, not placed)


def _body(request: PlanRequest, gpus: int, replicas: int, seconds: float, rate: float) -> Key:
    total = gpus * replicas
    weights = policy_weights(request.policy)
    # Without a prediction `seconds` is infinite, and 0 times infinity is no number.
    weight = (weights.time * seconds if weights.time else 0.0) + weights.devices * _occupied(gpus)
    if request.objective == "Throughput":
        return (-rate, total)
    if request.objective == "Latency" and request.policy != "HE":
        return (seconds, total)
    return (_occupied(gpus) * replicas, weight, seconds)


def _occupied(gpus: int) -> int:
    """GPUs that a replica leaves of no use to another of its size: 3, 5, 6 or 7 of a node's 8 count as 4 or 8."""
    return 1 << (gpus - 1).bit_length()
