"""Why no placement fits: the simplest reason that holds, with sizes and the device."""

from __future__ import annotations

from uellm.planner.placement.instance import Instance
from uellm.planner.placement.problem import Problem
from uellm.planner.refusals.placement import LayerTooLarge, MemoryShort, NoSplit, PlacementRefusal, TooManyStages


def refusal_of(instance: Instance, problem: Problem, stages: int | None) -> PlacementRefusal:
    """The reason that no placement fits on `stages` devices, or on any number of devices (None)."""
    layer = [problem.memory[index + 1] - problem.memory[index] for index in range(problem.layers)]
    largest = max(problem.classes, key=lambda c: (problem.room[c], -c))
    device, room = instance.devices[problem.members[largest][0]].id, problem.room[largest]
    most = min(problem.devices, problem.layers) if stages is None else stages
    if most > min(problem.devices, problem.layers):
        return TooManyStages(most, problem.devices, problem.layers)

    def whole(count: int) -> int:
        return count // problem.byte

    if room < max(layer):
        which = None if room < min(layer) else layer.index(max(layer))
        return LayerTooLarge(which, whole(max(layer)), whole(room), device)
    rooms = sorted((problem.room[c] for c in problem.classes for _ in problem.members[c]), reverse=True)
    total, have = problem.need(0, problem.layers), sum(max(0, room) for room in rooms[:most])
    if have < total:
        return MemoryShort(whole(total), whole(have), whole(total - have), most, problem.devices, device)
    return NoSplit(
        need_bytes=whole(total),
        have_bytes=whole(have),
        first_bytes=whole(problem.first),
        last_bytes=whole(problem.last),
        devices=most,
        exactly=stages is not None,
        device=device,
        device_bytes=whole(room),
    )
