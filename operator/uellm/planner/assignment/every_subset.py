"""The every-subset rule: with a device plugin the kubelet picks the devices, so every choice it has must do.

A count n is planned on a node only if n of its free GPUs are sure to be there and every n of them admit a placement.
Room is all that counts and more never hurts (feasibility.py), so the n smallest decide; with tensor parallelism a
choice of unlike GPUs can always be made unless all are alike or all are taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from uellm.hardware import Device
from uellm.planner.assignment.assign import Task, explain
from uellm.planner.assignment.feasibility import holds
from uellm.planner.memory.footprint import reserved_bytes
from uellm.planner.nodes.pools import Pool
from uellm.planner.nodes.tensor_groups import group_kinds, kind_of
from uellm.planner.refusals.kinds import MigSlicesAlone, NoRoom, PlanRefusal, TooFewGpus, UnlikeGpus


def refusal(pool: Pool, task: Task, stages: int) -> PlanRefusal | None:
    """None where every choice of devices that the kubelet has admits the placement, else why not."""
    count = task.tensor * stages
    if count > pool.sure:
        return TooFewGpus(count, len(pool.devices), pool.promised)
    if count > 1 and any(device.mig for device in pool.devices):
        return MigSlicesAlone()
    if task.tensor > 1 and (unlike := _unlike_choice(pool, task.tensor, count)):
        return unlike
    hardest = sorted(pool.devices, key=lambda device: (room(device, task), device.index))[:count]
    if holds(_group_rooms(hardest, task), task):
        return None
    return NoRoom(explain(hardest, pool.links, task, stages), task.tensor, _choice(pool, hardest))


def admits_some(pool: Pool, task: Task, stages: int) -> bool:
    """Whether some choice of devices does, were it ours to make."""
    count = task.tensor * stages
    if pool.sure < count or (count > 1 and any(device.mig for device in pool.devices)):
        return False
    rooms = sorted(_group_rooms(pool.devices, task))
    return len(rooms) >= stages and holds(rooms[-stages:], task)


def room(device: Device, task: Task) -> int:
    """Bytes of a device that are there for layers, their KV cache and what the end stages add."""
    return memory_room(device.memory_bytes, task)


def memory_room(memory_bytes: int, task: Task) -> int:
    """The same by the device's memory."""
    return memory_bytes - reserved_bytes(task.fixed_bytes, task.margin, memory_bytes)


def _group_rooms(devices: Sequence[Device], task: Task) -> list[int]:
    """Room on each GPU of every group that can be had at the same time; memory is a part of a group's kind."""
    return [memory_room(memory_bytes, task) for _, memory_bytes, _ in group_kinds(devices, task.tensor)]


def _unlike_choice(pool: Pool, tensor: int, count: int) -> PlanRefusal | None:
    kinds = Counter(kind_of(device) for device in pool.devices)
    whole = count == len(pool.devices) and not pool.promised
    if len(kinds) == 1 or (whole and all(number % tensor == 0 for number in kinds.values())):
        return None
    return UnlikeGpus(tensor, tuple((product, number) for (product, _, _), number in sorted(kinds.items())))


def _choice(pool: Pool, hardest: Sequence[Device]) -> tuple[int, ...]:
    """The indices of the hardest devices; none where any choice is as hard."""
    if len(hardest) == len(pool.devices) or len({device.memory_bytes for device in pool.devices}) == 1:
        return ()
    return tuple(sorted(device.index for device in hardest))
