"""The sentences of a plan: what was assumed, and why each alternative was rejected."""

from __future__ import annotations

from uellm.placement_policies import DEFAULT_PLACEMENT_POLICY
from uellm.planner import constants as c
from uellm.planner.assignment.spanning import hops_over_network
from uellm.planner.cost.rates import Links, measured
from uellm.planner.explanation.media import encoder_notes
from uellm.planner.nodes.capability import remarks
from uellm.planner.nodes.groups import takes
from uellm.planner.nodes.network import NetworkRate
from uellm.planner.nodes.pools import Pool
from uellm.planner.refusals.sentences import sentence
from uellm.planner.result import Alternative
from uellm.planner.search.candidate import Candidate, Evaluator
from uellm.planner.search.replicas import Sized
from uellm.planner.search.search import PlacedShape, Rejection, Search, SearchResult
from uellm.planner.shape import Shape
from uellm.planner.units import three_digits
from uellm.planner.vllm.drafting import drafting_note
from uellm.planner.vllm.flags import KV_CACHE_BYTES, UTILIZATION
from uellm.step_basis import Correction
from uellm.text import counted


def assumptions(
    best: Candidate, chosen: PlacedShape, *, left_out: int = 0, unproven_after: int | None = None
) -> tuple[str, ...]:
    """What the plan assumes and what the user set, a sentence each.

    `unproven_after`: the placements after which the search ended without a proof that nothing is better.
    """
    evaluator, request = best.evaluator, best.evaluator.request
    notes = [*request.notes, *request.architecture.notes, *evaluator.demand.assumptions, best.sizes.reason]
    notes += _overrides(evaluator)
    notes += [f"not considered: {each}" for each in request.left_out]
    notes += remarks([device for entry, _ in chosen.members for device in entry.pool.devices], request)
    notes += encoder_notes(request, best.footprint.encoder_bytes)
    if best.shape.pipeline > 1:
        filled = best.evaluator.objective(best.shape) == "bottleneck"
        notes.append(
            "layers are split to make the slowest stage as fast as possible: enough requests are in flight to fill the "
            "pipeline"
            if filled
            else "layers are split to make a single request as fast as possible"
        )
    unmeasured = sorted({device.product or device.uuid for device in best.assignment.devices if not measured(device)})
    if unmeasured:
        notes.append(f"speeds of {', '.join(unmeasured)} are not measured, so nothing is predicted")
    elif best.times is not None:
        notes.append(request.efficiency.sentence)
        notes += [] if best.correction is None else [_corrected(best.correction, best.shape)]
    notes += _network(best)
    rated = sorted({device.product for device in best.assignment.devices if device.rated})
    if rated:
        notes.append(
            f"speeds of {', '.join(rated)} are not measured on these nodes: those of the product are assumed, "
            "as measured elsewhere or taken from the data sheet"
        )
    slowest = evaluator.slowest(best)
    if slowest is not None:
        tpot = "" if request.pools else f"TPOT {slowest.tpot_s * 1e3:.1f} ms, "
        notes.append(
            f"with the slowest GPUs that the kubelet may choose on {best.pool.node}: "
            f"TTFT {slowest.ttft_s * 1e3:.0f} ms, {tpot}{slowest.requests_per_s:.2f} requests/s"
        )
    if not chosen.placed:
        room = sum(entry.room(best.shape.gpus) for entry, _ in chosen.members)
        notes.append(
            f"the workload needs {chosen.replicas} replicas, and the nodes that serve it within the targets have room "
            f"for {room} now"
        )
    if left_out:
        notes.append(
            f"{counted(left_out, 'more node')} would do as well; plan.json has no room for the facts of their devices"
        )
    if unproven_after is not None:
        notes.append(
            f"best found, not proven: the search ended after {unproven_after} placements; spec.parallelism and "
            "placement.gpus narrow it"
        )
    if best.pool.simulated:
        notes.append(
            "simulated GPUs: predictions hold for the GPUs as described, not for the CPU that stands in for them"
        )
    return tuple(notes)


def _network(best: Candidate) -> list[str]:
    """What is measured or assumed between the nodes of a replica, and what it costs."""
    nodes = len(best.pool.members)
    if not nodes:
        return []
    hops = hops_over_network(best.assignment, nodes)
    known, costs = Links(best.pool.links), best.evaluator.costs
    latency_s, transfer_s = known.message(hops[0][0].uuid, hops[0][1].uuid, costs.hop_bytes_per_token)
    step_s = len(hops) * (latency_s + transfer_s * c.TYPICAL_SEQUENCES)
    return [
        f"a replica spans {nodes} nodes, with {best.shape.pipeline // nodes} of {best.shape.pipeline} stages on each: "
        "no single node holds it within the targets; GPUs that share a layer are in one node",
        f"{_network_figures(best.pool.network)}; what crosses it in a step of {c.TYPICAL_SEQUENCES} tokens takes "
        f"{step_s * 1e3:.2f} ms",
    ]


def _network_figures(rate: NetworkRate) -> str:
    figures = f"{three_digits(rate.bytes_per_s / 1e9)} GB/s and {three_digits(rate.latency_s * 1e6)} µs"
    if not rate.pairs:
        return f"the network between nodes is not measured: {figures} are assumed, as NCCL reaches over TCP"
    slowest = f"the slowest of {rate.pairs} pairs" if rate.pairs > 1 else "by one pair of them"
    return f"the network between such nodes is measured over TCP: {figures}, {slowest}; RDMA is not measured"


def _corrected(correction: Correction, shape: Shape) -> str:
    basis, factors = correction.basis, correction.factors
    where = (
        ""
        if basis.shape == (shape.tensor, shape.pipeline)
        else (f" (tensor {basis.tensor} × pipeline {basis.pipeline}, the nearest shape that was measured)")
    )
    return (
        f"predictions are corrected by {correction.steps} measured steps of this model on {basis.product}{where}: "
        f"steps take {factors.decode:.2f} times as long as predicted from the rates, and prompts in them "
        f"{factors.prefill:.2f} times"
    )


def _overrides(evaluator: Evaluator) -> list[str]:
    own, request = evaluator.request.overrides, evaluator.request
    given = {"tensor": own.tensor, "pipeline": own.pipeline, "layers": own.layers and ",".join(map(str, own.layers))}
    notes = [f"parallelism.{name} {value} is set and kept" for name, value in given.items() if value is not None]
    if request.policy != DEFAULT_PLACEMENT_POLICY:
        notes.append(f"placement.policy {request.policy} is set")
    for flag in (UTILIZATION, KV_CACHE_BYTES):
        if value := evaluator.user.text(flag):
            notes.append(f"{flag} {value} is set in engine.args and kept")
    if note := drafting_note(request.architecture, evaluator.user):
        notes.append(note)
    return notes


def alternatives(search: Search, found: SearchResult) -> tuple[Alternative, ...]:
    """Rejected shapes, c.MOST_ALTERNATIVES at most: those with as many GPUs first, then fewer, then more."""
    assert found.best is not None
    others: list[PlacedShape | Rejection | Shape] = [*found.others, *found.rejections]
    others += [shape for shape, _ in found.bounded]
    nearest = sorted(others, key=lambda entry: _distance(_shape(entry), _shape(found.best)))
    if found.best.best.pool.members and (most := _most_on_one_node(search, nearest)) is not None:
        nearest.insert(0, most)
    return tuple(_alternative(search, entry, found.best) for entry in nearest[: c.MOST_ALTERNATIVES])


def _most_on_one_node(
    search: Search, others: list[PlacedShape | Rejection | Shape]
) -> PlacedShape | Rejection | Shape | None:
    """The shape with the most GPUs of one node, by tensor parallelism: what several nodes are compared with first."""
    most = max(pool.sure for pool in search.pools)
    found = max(
        (entry for entry in others if _shape(entry).gpus <= most),
        key=lambda entry: (_shape(entry).gpus, _shape(entry).tensor),
        default=None,
    )
    if found is not None:
        others.remove(found)
    return found


def _shape(entry: PlacedShape | Rejection | Shape | None) -> Shape:
    assert entry is not None
    return entry if isinstance(entry, Shape) else entry.shape


def _distance(shape: Shape, best: Shape) -> tuple[int, int, int]:
    kind = 0 if shape.gpus == best.gpus else 1 if shape.gpus < best.gpus else 2
    return kind, abs(shape.gpus - best.gpus), shape.tensor


def _alternative(search: Search, entry: PlacedShape | Rejection | Shape, best: PlacedShape) -> Alternative:
    if isinstance(entry, Rejection):
        shape = entry.shape
        reason = f"{entry.node}: {sentence(entry.refused.cause)}"
        return Alternative(shape.gpus, shape.tensor, shape.pipeline, (), _nodes(entry.pool), reason)
    if isinstance(entry, PlacedShape):
        return _lost(entry.best, entry.replicas, best, placed=entry.placed)
    # Its bound was enough to reject it; the best plan's node serves as an example.
    pool = next((group for group in search.groups if takes(group, entry)), best.best.pool)
    outcome = search.on_node(pool, entry)
    if isinstance(outcome, Sized):
        return _lost(outcome.candidate, outcome.replicas, best, placed=best.placed)
    reason = f"{pool.node}: {sentence(outcome.cause)}"
    return Alternative(entry.gpus, entry.tensor, entry.pipeline, (), _nodes(pool), reason)


def _nodes(pool: Pool) -> tuple[str, ...]:
    return tuple(dict.fromkeys(member.node for member in pool.members)) or (pool.node,)


def _lost(candidate: Candidate, replicas: int, best: PlacedShape, *, placed: bool) -> Alternative:
    """A shape that fits and was rejected, with the reason."""
    shape, nodes = candidate.shape, _nodes(candidate.pool)
    reason = _why(candidate, replicas, best, placed=placed)
    return Alternative(shape.gpus, shape.tensor, shape.pipeline, candidate.assignment.layers, nodes, reason)


def _why(candidate: Candidate, replicas: int, best: PlacedShape, *, placed: bool) -> str:
    request, gpus = best.best.evaluator.request, candidate.shape.gpus * replicas
    if best.placed and not placed:
        return f"the workload needs {replicas} replicas of it, and its nodes have room for fewer"
    in_all = f" in all, {replicas} replicas of {candidate.shape.gpus}," if replicas > 1 else ""
    more = f"takes {gpus} GPUs{in_all} instead of {best.gpus}"
    if candidate.times is None or best.best.times is None:
        if candidate.times is None and best.best.times is not None:
            return "not measured, so it cannot be predicted whether it meets the targets"
        return more if gpus > best.gpus else f"holds {candidate.kv.tokens} KV tokens instead of {best.best.kv.tokens}"
    output = best.best.evaluator.demand.output_tokens
    own, other = candidate.times.end_to_end_s(output), best.best.times.end_to_end_s(output)
    pace = f"a request takes {own:.2f} s instead of {other:.2f} s"
    if request.objective == "Throughput":
        pace = f"{candidate.times.requests_per_s:.2f} requests/s instead of {best.best.times.requests_per_s:.2f}"
    if gpus > best.gpus:
        return f"{more} ({pace})"
    if own < other and request.objective == "Efficiency" and gpus == best.gpus:
        return f"faster ({pace}), but policy {request.policy} does not pay for {candidate.shape.gpus}-GPU replicas"
    return pace
