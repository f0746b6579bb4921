"""Targets that nothing here can keep: the best that can be had, and the smallest change by which they would be kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from uellm.hardware import Device
from uellm.planner.cost.targets import outcomes, worst
from uellm.planner.refusals.kinds import Refusal
from uellm.planner.request import PlanRequest, SloClass
from uellm.planner.search.candidate import Candidate
from uellm.planner.search.ranking import IDEAL_SLACK
from uellm.planner.search.search import Search
from uellm.planner.target_outcome import TargetOutcome
from uellm.planner.units import milliseconds

# What can only just be had is had by a request alone: a tenth more leaves room for others beside it.
LEEWAYS = (1.1, 1.5, 4.0, math.inf)
# Placements whose worst target is this near to the best count as equally good, and the fewest GPUs decide.
NEAR = 1.05
# Hardware so many times as fast is no small change any more.
MOST_FACTOR = 16.0
_FACTOR_STEP = 0.05


class Best(NamedTuple):
    """The placement that comes nearest to all targets when a request is alone."""

    candidate: Candidate
    outcomes: tuple[TargetOutcome, ...]

    @property
    def missed(self) -> tuple[TargetOutcome, ...]:
        """The targets that it does not keep."""
        return tuple(entry for entry in self.outcomes if entry.missed)


def nearest(search: Search) -> Best | None:
    """The placement that comes nearest to the targets; None where nothing is predicted of any."""
    ideals = [
        (ratio, shape, family)
        for shape in search.every_shape()
        for family in search.families
        if (ratio := _ratio(search.sizer.alone(family.ideal, shape))) is not None
    ]
    found: list[tuple[float, int, Candidate]] = []
    for ratio, shape, family in sorted(ideals, key=lambda entry: entry[0]):
        if found and ratio * IDEAL_SLACK > min(entry[0] for entry in found) * NEAR:
            break
        for entry in family.classes:
            candidate = search.sizer.alone(entry.pool, shape)
            if isinstance(candidate, Candidate) and (own := _ratio(candidate)) is not None:
                found.append((own, shape.gpus, candidate))
    if not found:
        return None
    limit = min(ratio for ratio, _, _ in found) * NEAR
    _, _, chosen = min(
        (entry for entry in found if entry[0] <= limit),
        key=lambda entry: (entry[1], entry[0], entry[2].shape.tensor, entry[2].pool.node),
    )
    return Best(chosen, tuple(_outcomes(chosen)))


def relaxed(request: PlanRequest, best: Best) -> Iterator[PlanRequest]:
    """The request with the missed targets at what can be had and ever more leeway; last without them."""
    missed = {(entry.class_name, entry.name): entry.predicted_s for entry in best.missed}

    def loosened(each: SloClass, leeway: float) -> SloClass:
        fields = {"TTFT": "ttft_s", "TPOT": "tpot_s", "E2E": "e2e_s"}
        changes = {
            field: None if leeway == math.inf else missed[each.name, name] * leeway
            for name, field in fields.items()
            if (each.name, name) in missed
        }
        return replace(each, **changes)  # type: ignore[arg-type]

    for leeway in LEEWAYS:
        classes = tuple(loosened(each, leeway) for each in request.classes)
        yield replace(request, classes=classes, notes=(*request.notes, _sized_for(best, leeway)))


def _sized_for(best: Best, leeway: float) -> str:
    which = " and ".join(f"{entry.name} of class {entry.class_name}" for entry in best.missed)
    if leeway == math.inf:
        return f"{which} cannot be kept, and is left out of account"
    return f"{which} cannot be kept: the plan is for {leeway:g} x the best that can be had"


def constraint(best: Best) -> str:
    """What cannot be had, and what can."""
    shape, node = best.candidate.shape, best.candidate.pool.node
    parts = [
        f"{entry.name} {milliseconds(entry.target_s)} of class {entry.class_name}: the best is "
        f"{milliseconds(entry.predicted_s)}"
        for entry in best.missed
    ]
    return f"{'; '.join(parts)}, with {shape} on {node} for a request alone"


def change(best: Best) -> str:
    """The smallest change that would make the targets feasible, in words."""
    targets = [f"{entry.name} {milliseconds(entry.predicted_s)} for {entry.class_name}" for entry in best.missed]
    options = [f"a target of {' and '.join(targets)}"]
    if hardware := _hardware(best):
        options.append(hardware)
    return " or ".join(options)


def _hardware(best: Best) -> str:
    """How much faster GPUs would have to be, by the one rate that does it with the least."""
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
        factor = 1 + steps * _FACTOR_STEP
        groups = tuple(tuple(scale(device, factor) for device in group) for group in candidate.assignment.groups)
        pool = replace(candidate.pool, devices=tuple(scale(device, factor) for device in candidate.pool.devices))
        faster = replace(candidate, pool=pool, assignment=replace(candidate.assignment, groups=groups))
        return not any(entry.missed for entry in _outcomes(faster))

    low, high = 0, round((MOST_FACTOR - 1) / _FACTOR_STEP)
    if not kept(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return 1 + high * _FACTOR_STEP


def _faster(device: Device, *, compute: float = 1.0, memory: float = 1.0) -> Device:
    def times(rate: float | None, factor: float) -> float | None:
        return None if rate is None else rate * factor

    return replace(
        device,
        bf16_flops_per_s=times(device.bf16_flops_per_s, compute),
        fp16_flops_per_s=times(device.fp16_flops_per_s, compute),
        memory_bytes_per_s=times(device.memory_bytes_per_s, memory),
    )


def _outcomes(candidate: Candidate) -> list[TargetOutcome]:
    evaluator = candidate.evaluator
    times = evaluator.slowest(candidate) or candidate.times
    return [] if times is None else outcomes(times, evaluator.request.classes, evaluator.demand.output_tokens)


def _ratio(candidate: Candidate | Refusal) -> float | None:
    """By how much the target missed most is missed; None where nothing is predicted."""
    hardest = None if isinstance(candidate, Refusal) else worst(_outcomes(candidate))
    return None if hardest is None else hardest.ratio
