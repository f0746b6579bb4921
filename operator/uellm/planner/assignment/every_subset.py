"""The every-subset rule: with a device plugin the kubelet picks the devices, so every possible choice must work.

A count n is planned on a node only if n of its free GPUs are certain to be free and every n of them admit a placement.
Only room matters, and more room never hurts (feasibility.py), so the n smallest GPUs decide. With tensor parallelism
the kubelet can always choose unlike GPUs, unless all are alike or all are taken.
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
    hardest = _hardest(pool, task, count)
    if holds(_group_rooms(hardest, task), task):
        return None
    return NoRoom(explain(hardest, pool.links, task, stages), task.tensor, _choice(pool, hardest))


def admits_every(pool: Pool, task: Task, stages: int) -> bool:
    """Whether `refusal` gives None; without the reason, which costs more than the answer."""
    count = task.tensor * stages
    if count > pool.sure or (count > 1 and any(device.mig for device in pool.devices)):
        return False
    if task.tensor > 1 and _unlike_choice(pool, task.tensor, count):
        return False
    return holds(_group_rooms(_hardest(pool, task, count), task), task)


def admits_some(pool: Pool, task: Task, stages: int) -> bool:
    """Whether some choice of devices admits it, if it were ours to make."""
    count = task.tensor * stages
    if pool.sure < count or (count > 1 and any(device.mig for device in pool.devices)):
        return False
    rooms = sorted(_group_rooms(pool.devices, task))
    return len(rooms) >= stages and holds(rooms[-stages:], task)


def _hardest(pool: Pool, task: Task, count: int) -> list[Device]:
    return sorted(pool.devices, key=lambda device: (room(device, task), device.index))[:count]


def room(device: Device, task: Task) -> int:
    """Bytes of a device that are available to layers, their KV cache and the additions of the end stages."""
    return memory_room(device.memory_bytes, task)


def memory_room(memory_bytes: int, task: Task) -> int:
    """The same, from the device's memory."""
    return memory_bytes - reserved_bytes(task.fixed_bytes, task.margin, memory_bytes)


def _group_rooms(devices: Sequence[Device], task: Task) -> list[int]:
    """Room on each GPU of all groups that can be formed at the same time. Memory is part of a group's kind."""
    return [memory_room(memory_bytes, task) for _, memory_bytes, _ in group_kinds(devices, task.tensor)]


def _unlike_choice(pool: Pool, tensor: int, count: int) -> PlanRefusal | None:
    kinds = Counter(kind_of(device) for device in pool.devices)
    whole = count == len(pool.devices) and not pool.promised
    if len(kinds) == 1 or (whole and all(number % tensor == 0 for number in kinds.values())):
        return None
    return UnlikeGpus(tensor, tuple((product, number) for (product, _, _), number in sorted(kinds.items())))


def _choice(pool: Pool, hardest: Sequence[Device]) -> tuple[int, ...]:
    """The indices of the hardest devices; empty where every choice is equally hard."""
    if len(hardest) == len(pool.devices) or len({device.memory_bytes for device in pool.devices}) == 1:
        return ()
    return tuple(sorted(device.index for device in hardest))
