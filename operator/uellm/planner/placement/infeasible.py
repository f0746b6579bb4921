"""Why nothing fits, as one sentence that names the amount and the device."""

from __future__ import annotations

from uellm.planner.placement.instance import Instance
from uellm.planner.placement.problem import Problem
from uellm.planner.units import size


def why(instance: Instance, problem: Problem, stages: int | None) -> str:
    """The binding reason, the simplest first."""
    layer = [problem.memory[index + 1] - problem.memory[index] for index in range(problem.layers)]
    largest = max(problem.classes, key=lambda c: (problem.room[c], -c))
    name, room = instance.devices[problem.members[largest][0]].id, problem.room[largest]
    most = min(problem.devices, problem.layers) if stages is None else stages

    def shown(count: int) -> str:
        return size(count // problem.byte)

    if most > min(problem.devices, problem.layers):
        return f"{most} stages need as many devices and layers; there are {problem.devices} and {problem.layers}"
    if room < max(layer):
        which = "even one layer" if room < min(layer) else f"layer {layer.index(max(layer))}"
        return f"no device holds {which}: it takes {shown(max(layer))}, and the largest, {name}, has {shown(room)} free"
    rooms = sorted((problem.room[c] for c in problem.classes for _ in problem.members[c]), reverse=True)
    total, have = problem.need(0, problem.layers), sum(max(0, room) for room in rooms[:most])
    if have < total:
        largest_ones = f"{most} devices have" if most == problem.devices else f"the {most} largest devices have"
        return (
            f"layers, KV cache and the ends of the pipeline need {shown(total)}, and "
            f"{f'{name} has' if most == 1 else largest_ones} {shown(have)} free: {shown(total - have)} are missing"
        )
    return (
        f"no split over {'up to' if stages is None else 'exactly'} {most} devices fits: they have {shown(have)} free "
        f"for {shown(total)}, but whole layers and what the first and the last stage hold besides "
        f"({shown(problem.first)} and {shown(problem.last)}) leave gaps; the largest, {name}, has {shown(room)} free"
    )
