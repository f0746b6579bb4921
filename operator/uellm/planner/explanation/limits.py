"""The limit that a plan reaches first: the one of which it uses the largest share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from uellm.planner.cost.targets import outcomes, worst
from uellm.planner.request import SloClass
from uellm.planner.search.candidate import Candidate
from uellm.planner.units import milliseconds, size


def binding(best: Candidate, replicas: int, classes: Sequence[SloClass]) -> str:
    """That limit as a sentence: a stage's memory, a target of the classes, or the rate."""
    share, sentence = max(_limits(best, replicas, classes), key=lambda entry: entry[0])
    return f"{sentence} ({share:.0%})"


def _limits(best: Candidate, replicas: int, classes: Sequence[SloClass]) -> Iterator[tuple[float, str]]:
    yield _memory(best)
    times, evaluator = best.times, best.evaluator
    if times is None:
        return
    hardest = worst(outcomes(times, classes, evaluator.demand.output_tokens))
    if hardest is not None:
        yield (
            hardest.ratio,
            f"{hardest.name} of class {hardest.class_name}: {milliseconds(hardest.predicted_s)} predicted of "
            f"{milliseconds(hardest.target_s)}",
        )
    rate = evaluator.demand.requests_per_s
    if rate is not None:
        whose = "" if replicas == 1 else f" for each of {replicas} replicas"
        limit = f", limited by {times.binding}" if times.binding else ""
        yield (
            rate / times.requests_per_s,
            f"rate{whose}: {rate:.3g} of {times.requests_per_s:.3g} requests/s within the targets{limit}",
        )


def _memory(best: Candidate) -> tuple[float, str]:
    """The memory that a device needs, with the required KV cache only, compared with what it may use."""
    found = []
    for index, stage in enumerate(best.stages()):
        group = best.assignment.groups[index]
        smallest = min(device.memory_bytes for device in group)
        usable = int(smallest * (1 - Fraction(best.footprint.margin)))
        needed = stage.memory.required - stage.memory.kv + best.kv_required(index)
        found.append(
            (
                needed / usable,
                f"memory of stage {index} ({', '.join(f'gpu-{device.index}' for device in group)}): {size(needed)} "
                f"needed of {size(usable)} that the engine may use",
            )
        )
    return max(found, key=lambda entry: entry[0])
