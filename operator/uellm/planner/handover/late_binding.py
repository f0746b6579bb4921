"""Late binding: the layers placed on the devices that a pod really got, from plan.json alone.

The kubelet picks devices, so a pod may hold others than those meant for it. Where it holds the planned ones it gets
the planned split; otherwise the planner's own solver decides on what is there, for the same policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from uellm.errors import PlanError
from uellm.hardware import Device
from uellm.planner.assignment.assign import Assignment, Task, assign
from uellm.planner.assignment.every_subset import room
from uellm.planner.assignment.feasibility import needs
from uellm.planner.handover.plan_document import PlanDocument, PlannedDevice, PlannedEngine
from uellm.planner.memory.kv_cache import kv_cache
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.refusals.sentences import sentence
from uellm.planner.result import Plan
from uellm.planner.spans import spans
from uellm.planner.vllm.flags import KV_CACHE_BYTES
from uellm.planner.vllm.refused_flags import flag_name
from uellm.text import counted


@dataclass(frozen=True, slots=True)
class Binding:
    """How the pod's devices are used. `order` is the rank order: stage by stage, `tensor` devices each."""

    order: tuple[str, ...]
    layers: tuple[int, ...]
    tensor: int
    pipeline: int
    kv_cache_bytes: int | None = None
    """What every rank allocates; None: as the plan's own flags say."""


def bind(document: PlanDocument, uuids: Sequence[str]) -> Binding:
    """The binding of these devices. Raises PlanError: UnknownDevice, WrongDeviceCount, or NoFit with the amount."""
    plan, task = document.plan, document.task
    planned = [_known(document, uuid) for uuid in dict.fromkeys(uuids)]
    devices = [entry.device for entry in planned]
    stages = plan.gpus_per_replica // task.tensor
    if len(devices) != stages * task.tensor:
        raise PlanError(
            "WrongDeviceCount",
            f"the pod has {counted(len(devices), 'GPU')} and the plan is for {stages * task.tensor} (tensor "
            f"{task.tensor} x pipeline {stages}): request as many GPUs as the plan has",
        )
    assignment = _as_planned(plan, devices, task)
    if assignment is None:
        nodes = sorted({entry.node for entry in planned})
        links = [link for node in nodes for link in document.links.get(node, ())]
        answer = assign(devices, links, task, stages)
        if isinstance(answer, PlanRefusal):
            raise PlanError("NoFit", f"the pod's GPUs cannot hold the plan: {sentence(answer)}")
        assignment = answer
    order = tuple(device.uuid for device in assignment.devices)
    return Binding(order, assignment.layers, task.tensor, stages, _kv_cache_bytes(document, assignment))


def engine_args(engine: PlannedEngine, binding: Binding) -> tuple[str, ...]:
    """The engine's arguments with the KV cache of this binding: another split has another tightest stage."""
    args = list(engine.args)
    if binding.kv_cache_bytes is None:
        return tuple(args)
    for index, argument in enumerate(args[:-1]):
        if flag_name(argument) == KV_CACHE_BYTES and "=" not in argument:
            args[index + 1] = str(binding.kv_cache_bytes)
    return tuple(args)


def _known(document: PlanDocument, uuid: str) -> PlannedDevice:
    planned = document.devices.get(uuid)
    if planned is None:
        raise PlanError("UnknownDevice", f"device {uuid} is on no node of the plan")
    return planned


def _as_planned(plan: Plan, devices: Sequence[Device], task: Task) -> Assignment | None:
    """The plan's own split, where the pod has the very devices meant for it and they hold it."""
    by_uuid = {device.uuid: device for device in devices}
    if len(plan.stages) != len(plan.layers) or sorted(plan.devices) != sorted(by_uuid):
        return None
    groups = tuple(tuple(by_uuid[uuid] for uuid in stage.devices) for stage in plan.stages)
    wanted = needs(task, plan.layers)
    if any(need > room(device, task) for group, need in zip(groups, wanted, strict=True) for device in group):
        return None
    return Assignment(groups, plan.layers, 0.0)


def _kv_cache_bytes(document: PlanDocument, assignment: Assignment) -> int | None:
    task, tokens = document.task, document.kv_tokens
    if not tokens:
        return None
    rooms, per_token = [], []
    stages = zip(assignment.groups, needs(task, assignment.layers), spans(assignment.layers), strict=True)
    for group, need, (a, b) in stages:
        kv = sum(task.layer_kv_bytes[a:b])
        rooms.append(min(room(device, task) for device in group) - need + kv)
        per_token.append(Fraction(kv, tokens))
    most = tokens if document.platform == "cpu" else None
    return kv_cache(rooms, per_token, most_tokens=most).flag_bytes * document.kv_factor
