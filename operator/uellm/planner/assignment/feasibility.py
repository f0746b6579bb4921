"""Whether layers fit on devices at all, without a search for the best placement: a fast yes or no.

More room never hurts: a placement remains valid when a device is exchanged for a larger one. So of all sets of n
devices the n smallest are the hardest, and checking them decides for every set.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from uellm.planner.assignment.assign import Task
from uellm.planner.placement.instance import Instance, PlaceDevice
from uellm.planner.placement.solver import solve
from uellm.planner.spans import spans


def holds(rooms: Sequence[int], task: Task) -> bool:
    """Whether the layers fit on exactly these devices, each with its bytes of room, in some order."""
    stages = len(rooms)
    if stages > len(task.layer_bytes):
        return False
    layers = task.fixed_layers(stages)
    if layers is not None:
        return len(layers) == stages and _fixed(rooms, task, layers)
    per_layer = {weights + kv for weights, kv in zip(task.layer_bytes, task.layer_kv_bytes, strict=True)}
    if len(per_layer) == 1:
        return _uniform(rooms, task, per_layer.pop())
    return _unlike(rooms, task)


def _fixed(rooms: Sequence[int], task: Task, layers: Sequence[int]) -> bool:
    """A given split fits if its stages, by falling need, fit in the rooms by falling size."""
    return all(need <= room for need, room in zip(sorted(needs(task, layers)), sorted(rooms), strict=True))


def needs(task: Task, layers: Sequence[int]) -> list[int]:
    """Bytes that each stage of a given split needs."""
    last = len(task.layer_bytes)
    return [
        sum(task.layer_bytes[a:b])
        + sum(task.layer_kv_bytes[a:b])
        + task.first_bytes * (a == 0)
        + task.last_bytes * (b == last)
        for a, b in spans(layers)
    ]


def _uniform(rooms: Sequence[int], task: Task, layer: int) -> bool:
    if len(rooms) == 1:
        return rooms[0] - task.first_bytes - task.last_bytes >= layer * len(task.layer_bytes)
    middle = [room // layer for room in rooms]
    first = [(room - task.first_bytes) // layer for room in rooms]
    last = [(room - task.last_bytes) // layer for room in rooms]
    if min(middle) < 1:
        return False
    return any(
        first[head] >= 1
        and last[tail] >= 1
        and sum(middle) - middle[head] - middle[tail] + first[head] + last[tail] >= len(task.layer_bytes)
        for head, tail in permutations(range(len(rooms)), 2)
    )


def _unlike(rooms: Sequence[int], task: Task) -> bool:
    devices = tuple(PlaceDevice(f"{index:04d}", max(0, room), 1.0) for index, room in enumerate(rooms))
    instance = Instance(
        layer_bytes=task.layer_bytes,
        layer_kv_bytes=task.layer_kv_bytes,
        devices=devices,
        latency_s=((0.0,) * len(rooms),) * len(rooms),
        first_stage_bytes=task.first_bytes,
        last_stage_bytes=task.last_bytes,
    )
    return solve(instance, stages=len(rooms)).feasible
