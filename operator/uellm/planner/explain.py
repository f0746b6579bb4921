"""The sentences of a plan: what was assumed, why the others lost, and why nothing fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from uellm.errors import PlanError
from uellm.planner.candidate import Candidate, Question
from uellm.planner.engine_args import UTILIZATION
from uellm.planner.footprint import Shape
from uellm.planner.infeasible import size
from uellm.planner.result import Alternative
from uellm.planner.shapes import shapes
from uellm.planner.speed import Links, measured
from uellm.planner.subsets import Pool


class Rejected(Protocol):
    """A shape that no node admits."""

    @property
    def shape(self) -> Shape:
        """The shape."""

    @property
    def node(self) -> str:
        """The node that came nearest to admitting it."""

    @property
    def reason(self) -> str:
        """Why it does not."""


def assumptions(best: Candidate, *, left_out: int = 0) -> tuple[str, ...]:
    """What the plan takes for granted or was told, a sentence each."""
    question, request = best.question, best.question.request
    notes = [*request.notes, *request.architecture.notes, *question.demand.assumptions, best.sizes.reason]
    notes += _overrides(question)
    if best.shape.pipeline > 1:
        slowest = best.question.objective(best.shape) == "bottleneck"
        notes.append(
            "layers are split so that the slowest stage is as fast as can be: enough requests are in flight to fill "
            "the pipeline"
            if slowest
            else "layers are split for the least time of one request over all stages"
        )
    unmeasured = sorted({device.product or device.uuid for device in best.assignment.devices if not measured(device)})
    if unmeasured:
        notes.append(f"speeds of {', '.join(unmeasured)} are not measured: nothing is predicted from them")
    elif best.times is not None:
        notes.append(request.efficiency.sentence)
        notes += _misses(best)
    if left_out:
        notes.append(
            f"{left_out} more nodes would do; the plan lists as many of the best as its ConfigMap has room for"
        )
    if best.pool.simulated:
        notes.append("simulated GPUs: what is predicted holds for the GPUs described, not for the CPU that plays them")
    return tuple(notes)


def _misses(best: Candidate) -> list[str]:
    """Targets that the prediction misses. A prediction without calibration decides nothing; it is told."""
    times, wanted = best.times, best.question.demand
    assert times is not None
    pairs = (("TTFT", times.ttft_s, wanted.ttft_s), ("TPOT", times.tpot_s, wanted.tpot_s))
    return [
        f"the predicted {name} of {own * 1e3:.0f} ms misses the tightest target of {target * 1e3:.0f} ms"
        for name, own, target in pairs
        if target is not None and own > target
    ]


def _overrides(question: Question) -> list[str]:
    own, request = question.request.overrides, question.request
    given = {"tensor": own.tensor, "pipeline": own.pipeline, "layers": own.layers and ",".join(map(str, own.layers))}
    notes = [f"parallelism.{name} {value} is set and kept" for name, value in given.items() if value is not None]
    if request.policy != "HELR":
        notes.append(f"placement.policy {request.policy} is set")
    if share := question.user.text(UTILIZATION):
        notes.append(f"{UTILIZATION} {share} is set in engine.args and kept")
    return notes


def lost(candidate: Candidate, best: Candidate) -> Alternative:
    """A shape that fits and was not taken, with what decided."""
    shape = candidate.shape
    layers, nodes = candidate.assignment.layers, (candidate.pool.node,)
    return Alternative(shape.gpus, shape.tensor, shape.pipeline, layers, nodes, _why(candidate, best))


def refused(entry: Rejected) -> Alternative:
    """A shape that no node admits, with the reason of the one that comes nearest."""
    shape = entry.shape
    return Alternative(shape.gpus, shape.tensor, shape.pipeline, (), (entry.node,), f"{entry.node}: {entry.reason}")


def _why(candidate: Candidate, best: Candidate) -> str:
    gpus, objective = candidate.shape.gpus, best.question.request.objective
    more = f"takes {gpus} GPUs instead of {best.shape.gpus}"
    if candidate.times is None or best.times is None:
        return more if gpus > best.shape.gpus else f"holds {candidate.kv.tokens} KV tokens against {best.kv.tokens}"
    output = best.question.demand.output_tokens
    own, other = candidate.times.end_to_end_s(output), best.times.end_to_end_s(output)
    pace = f"a request takes {own:.2f} s against {other:.2f} s"
    if objective == "Throughput":
        pace = f"{candidate.times.requests_per_s:.2f} requests/s against {best.times.requests_per_s:.2f}"
    return pace if gpus == best.shape.gpus else f"{more} ({pace})"


def fast_links(candidate: Candidate) -> bool:
    """Whether tensor groups talk over NVLink alone; groups of one have nothing to say."""
    links = Links(candidate.pool.links)
    return all(
        links.between(a.uuid, b.uuid).kind == "NVLink"
        for group in candidate.assignment.groups
        for a in group
        for b in group
        if a is not b
    )


def no_plan(question: Question, pools: Sequence[Pool], rejections: Sequence[Rejected]) -> PlanError:
    """NoFit or NeedsExactDevices, with the device and the amount."""
    if not pools:
        return PlanError("NoFit", _nothing_free(question))
    exact = _exact(question, pools, rejections)
    if exact is not None:
        return exact
    return PlanError("NoFit", f"{_amount(question, pools)}{_nearest(rejections)}{_remedy(question, pools)}")


def _nothing_free(question: Question) -> str:
    devices = [device for offer in question.request.nodes for device in offer.node.devices]
    if not devices:
        return f"the {len(question.request.nodes)} profiled nodes have no GPU"
    out = [device for device in devices if not device.usable]
    use = f"{len(devices) - len(out)} are in use"
    if out:
        use += f", {len(out)} out of use ({out[0].excluded_reason or out[0].health_reason or out[0].health_state})"
    return f"none of the {len(devices)} GPUs of {len(question.request.nodes)} nodes is free: {use}"


def _exact(question: Question, pools: Sequence[Pool], rejections: Sequence[Rejected]) -> PlanError | None:
    if question.request.allocation == "DRA":
        return None
    for rejected in rejections:
        for pool in pools:
            if question.needs_exact(pool, rejected.shape):
                reason = question.refusal(pool, rejected.shape, question.steps(pool.devices, rejected.shape))
                return PlanError(
                    "NeedsExactDevices",
                    f"{rejected.shape} fits {pool.node} only on chosen GPUs, and a device plugin hands out any "
                    f"{rejected.shape.gpus} of the {len(pool.devices)} free ones: {reason}; set placement.gpus.min and "
                    f"max to {len(pool.devices)} to take all of them, or exclude the small ones in the GPUNodeProfile",
                )
    return None


def _amount(question: Question, pools: Sequence[Pool]) -> str:
    """What one device would have to have, and what the largest has."""
    pool, device = max(
        ((pool, device) for pool in pools for device in pool.devices), key=lambda entry: entry[1].memory_bytes
    )
    shape = Shape(1, 1)
    sizes = question.footprint(shape, question.steps([device], shape))
    needed = sum(sizes.layer_bytes) + sum(sizes.layer_kv_bytes) + sizes.embedding_bytes + sizes.last_bytes
    needed += sizes.fixed_bytes
    usable = device.memory_bytes - (sizes.reserved_bytes(device.memory_bytes) - sizes.fixed_bytes)
    return f"needs {size(needed)} on one device; largest free is {size(usable)} ({pool.node} gpu-{device.index})"


def _nearest(rejections: Sequence[Rejected]) -> str:
    if not rejections:
        return ""
    last = max(rejections, key=lambda entry: (entry.shape.gpus, -entry.shape.tensor))
    return f"; {last.shape} on {last.node}: {last.reason}"


def _remedy(question: Question, pools: Sequence[Pool]) -> str:
    request = question.request
    most = max(pool.sure for pool in pools)
    if most < request.gpus_min:
        return f"; placement.gpus.min is {request.gpus_min}, and no node has more than {most} free GPUs for it"
    if not any(True for gpus in range(request.gpus_min, most + 1) for _ in shapes(request, gpus)):
        return "; no number of free GPUs makes a shape that the overrides and the model's heads allow"
    if request.gpus_max is not None and request.gpus_max < most:
        return f": allow more GPUs (placement.gpus.max is {request.gpus_max}) or a smaller maxModelLen"
    return f": add or free GPUs, or take a smaller maxModelLen (now {request.max_model_len}) or a quantized model"
