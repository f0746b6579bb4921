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


def refusal(pool: Pool, task: Task, stages: int) -> str | None:
    """None where every choice of devices that the kubelet has admits the placement, else the sentence why not."""
    count = task.tensor * stages
    if reason := _too_few(pool, count):
        return reason
    if count > 1 and any(device.mig for device in pool.devices):
        return "MIG slices cannot be combined: one slice serves alone"
    if task.tensor > 1 and (reason := _unlike_choice(pool, task.tensor, count)):
        return reason
    hardest = sorted(pool.devices, key=lambda device: (room(device, task), device.index))[:count]
    if holds(_group_rooms(hardest, task), task):
        return None
    return f"{explain(hardest, pool.links, task, stages)}{_choice(pool, hardest)}"


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


def _too_few(pool: Pool, count: int) -> str | None:
    if count <= pool.sure:
        return None
    promised = f", {pool.promised} of them planned for other services" if pool.promised else ""
    return f"needs {count} free GPUs and has {len(pool.devices)}{promised}"


def _unlike_choice(pool: Pool, tensor: int, count: int) -> str | None:
    kinds = Counter(kind_of(device) for device in pool.devices)
    whole = count == len(pool.devices) and not pool.promised
    if len(kinds) == 1 or (whole and all(number % tensor == 0 for number in kinds.values())):
        return None
    names = ", ".join(f"{number} x {kind[0] or 'GPU'}" for kind, number in sorted(kinds.items()))
    return f"the kubelet may hand out unlike GPUs ({names}), and GPUs that share layers (tensor {tensor}) must be alike"


def _choice(pool: Pool, hardest: Sequence[Device]) -> str:
    if len(hardest) == len(pool.devices) or len({device.memory_bytes for device in pool.devices}) == 1:
        return ""
    names = ", ".join(f"gpu-{device.index}" for device in sorted(hardest, key=lambda device: device.index))
    return f" (the kubelet may hand out {names})"
