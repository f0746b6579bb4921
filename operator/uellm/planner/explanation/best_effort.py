"""For targets that cannot be met: the best that is possible, and the smallest change that would meet them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from uellm.hardware import Device
from uellm.planner import constants as c
from uellm.planner.cost.targets import outcomes, worst
from uellm.planner.nodes.groups import takes
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.request import PlanRequest, SloClass
from uellm.planner.search.candidate import Candidate
from uellm.planner.search.search import Search
from uellm.planner.target_outcome import TargetOutcome
from uellm.planner.units import milliseconds


class NearestPlacement(NamedTuple):
    """The placement that comes nearest to all targets with a single request in flight."""

    candidate: Candidate
    outcomes: tuple[TargetOutcome, ...]

    @property
    def missed(self) -> tuple[TargetOutcome, ...]:
        """The targets that it misses."""
        return tuple(entry for entry in self.outcomes if entry.missed)


def nearest(search: Search) -> NearestPlacement | None:
    """The placement that comes nearest to the targets; None if nothing is predicted."""
    ideals = [
        (ratio, shape, family)
        for shape in search.every_shape()
        for family in search.families
        if takes(family.ideal, shape)
        if (ratio := _ratio(search.sizer.alone(family.ideal, shape))) is not None
    ]
    found: list[tuple[float, int, Candidate]] = []
    for ratio, shape, family in sorted(ideals, key=lambda entry: entry[0]):
        if found and ratio * c.IDEAL_SLACK > min(entry[0] for entry in found) * c.NEARLY_BEST:
            break
        for entry in family.classes:
            candidate = search.sizer.alone(entry.pool, shape)
            if isinstance(candidate, Candidate) and (own := _ratio(candidate)) is not None:
                found.append((own, shape.gpus, candidate))
    if not found:
        return None
    limit = min(ratio for ratio, _, _ in found) * c.NEARLY_BEST
    _, _, chosen = min(
        (entry for entry in found if entry[0] <= limit),
        key=lambda entry: (entry[1], entry[0], entry[2].shape.tensor, entry[2].pool.node),
    )
    return NearestPlacement(chosen, tuple(_outcomes(chosen)))


def relaxed(request: PlanRequest, best: NearestPlacement) -> Iterator[PlanRequest]:
    """The request with the missed targets relaxed to what is possible, with growing headroom; finally without them."""
    # What is possible becomes the target, of which a load may take a share.
    possible = {
        (entry.class_name, entry.name): entry.predicted_s / request.efficiency.target_share for entry in best.missed
    }

    def loosened(each: SloClass, leeway: float) -> SloClass:
        fields = {"TTFT": "ttft_s", "TPOT": "tpot_s", "E2E": "e2e_s"}
        changes = {
            field: None if leeway == math.inf else possible[each.name, name] * leeway
            for name, field in fields.items()
            if (each.name, name) in possible
        }
        return replace(each, **changes)  # type: ignore[arg-type]

    for leeway in c.LEEWAYS:
        classes = tuple(loosened(each, leeway) for each in request.classes)
        yield replace(request, classes=classes, notes=(*request.notes, _sized_for(best, leeway)))


def _sized_for(best: NearestPlacement, leeway: float) -> str:
    which = " and ".join(f"{entry.name} of class {entry.class_name}" for entry in best.missed)
    if leeway == math.inf:
        return f"{which} cannot be met and is ignored"
    return f"{which} cannot be met: the plan is for {leeway:g} x the best possible"


def constraint(best: NearestPlacement) -> str:
    """Which targets cannot be met, and what is possible."""
    shape, node = best.candidate.shape, best.candidate.pool.node
    parts = [
        f"{entry.name} {milliseconds(entry.target_s)} of class {entry.class_name}: the best for a lone request is "
        f"{milliseconds(entry.predicted_s)}"
        for entry in best.missed
    ]
    return f"{'; '.join(parts)}, with {shape} on {node}"


def change(best: NearestPlacement) -> str:
    """The smallest change that would make the targets feasible, as a sentence."""
    targets = [f"{entry.name} {milliseconds(entry.predicted_s)} for {entry.class_name}" for entry in best.missed]
    options = [f"a target of {' and '.join(targets)}"]
    if hardware := _hardware(best):
        options.append(hardware)
    return " or ".join(options)


def _hardware(best: NearestPlacement) -> str:
    """How much faster GPUs would have to be in one rate: the rate that needs the smallest factor."""
    kinds: tuple[tuple[str, Callable[[Device, float], Device]], ...] = (
        ("compute", lambda device, factor: _faster(device, compute=factor)),
        ("memory bandwidth", lambda device, factor: _faster(device, memory=factor)),
        ("compute and memory bandwidth", lambda device, factor: _faster(device, compute=factor, memory=factor)),
    )
    found = [(factor, name) for name, scale in kinds if (factor := _least_factor(best.candidate, scale)) is not None]
    if not found:
        return ""
    factor, name = min(found, key=lambda entry: entry[0])
    return f"GPUs with {factor:.2f} x the {name}"


def _least_factor(candidate: Candidate, scale: Callable[[Device, float], Device]) -> float | None:
    def kept(steps: int) -> bool:
        factor = 1 + steps * c.FASTER_STEP
        groups = tuple(tuple(scale(device, factor) for device in group) for group in candidate.assignment.groups)
        pool = candidate.pool.mapped(lambda devices: tuple(scale(device, factor) for device in devices))
        faster = replace(candidate, pool=pool, assignment=replace(candidate.assignment, groups=groups))
        return not any(entry.missed for entry in _outcomes(faster))

    low, high = 0, round((c.MOST_FASTER - 1) / c.FASTER_STEP)
    if not kept(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return 1 + high * c.FASTER_STEP


def _faster(device: Device, *, compute: float = 1.0, memory: float = 1.0) -> Device:
    def times(rate: float | None, factor: float) -> float | None:
        return None if rate is None else rate * factor

    return replace(
        device,
        bf16_flops_per_s=times(device.bf16_flops_per_s, compute),
        fp16_flops_per_s=times(device.fp16_flops_per_s, compute),
        fp8_flops_per_s=times(device.fp8_flops_per_s, compute),
        memory_bytes_per_s=times(device.memory_bytes_per_s, memory),
    )


def _outcomes(candidate: Candidate) -> list[TargetOutcome]:
    evaluator = candidate.evaluator
    times = evaluator.slowest(candidate) or candidate.times
    return [] if times is None else outcomes(times, evaluator.request.classes, evaluator.demand.output_tokens)


def _ratio(candidate: Candidate | PlanRefusal) -> float | None:
    """Predicted over target for the target that is missed most; None if nothing is predicted."""
    hardest = None if isinstance(candidate, PlanRefusal) else worst(_outcomes(candidate))
    return None if hardest is None else hardest.ratio
