"""Late binding: the layers placed on the devices that a pod really got, from plan.json alone.

The kubelet picks devices, so a pod may hold others than those meant for it. Where it holds the planned ones it gets
the planned split; otherwise the planner's own solver decides on what is there, for the same policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from uellm.errors import PlanError
from uellm.hardware import Device, Link
from uellm.planner.assignment.assign import Assignment, Task, assign
from uellm.planner.assignment.every_subset import room
from uellm.planner.assignment.feasibility import needs
from uellm.planner.cost.rates import Costs
from uellm.planner.memory.kv_cache import kv_cache
from uellm.planner.vllm.flags import KV_CACHE_BYTES
from uellm.planner.vllm.refused_flags import flag_name


@dataclass(frozen=True, slots=True)
class Binding:
    """How the pod's devices are used. `order` is the rank order: stage by stage, `tensor` devices each."""

    order: tuple[str, ...]
    layers: tuple[int, ...]
    tensor: int
    pipeline: int
    kv_cache_bytes: int | None = None  # told to every rank; None: the plan's own flags stand


def bind(document: Mapping[str, Any], uuids: Sequence[str]) -> Binding:
    """The binding of these devices. Raises PlanError: UnknownDevice, WrongDeviceCount, or NoFit with the amount."""
    plan, task = document["plan"], task_from(document)
    devices = [_device(document, uuid) for uuid in dict.fromkeys(uuids)]
    stages = int(plan["gpusPerReplica"]) // task.tensor
    if len(devices) != stages * task.tensor:
        raise PlanError(
            "WrongDeviceCount",
            f"the pod has {len(devices)} GPUs and the plan is for {stages * task.tensor} (tensor {task.tensor} x "
            f"pipeline {stages}): its GPU request must be the plan's",
        )
    assignment = _as_planned(plan, devices, task)
    if assignment is None:
        nodes = {document["devices"][device.uuid]["node"] for device in devices}
        links = [Link.from_dict(entry) for node in sorted(nodes) for entry in document["links"].get(node, ())]
        answer = assign(devices, links, task, stages)
        if isinstance(answer, str):
            raise PlanError("NoFit", f"the pod's GPUs cannot hold the plan: {answer}")
        assignment = answer
    order = tuple(device.uuid for device in assignment.devices)
    return Binding(order, assignment.layers, task.tensor, stages, _kv_cache_bytes(document, task, assignment))


def engine_args(document: Mapping[str, Any], binding: Binding) -> tuple[str, ...]:
    """The engine's arguments with the KV cache of this binding: another split has another tightest stage."""
    args = [str(argument) for argument in document["engine"].get("args") or ()]
    if binding.kv_cache_bytes is None:
        return tuple(args)
    for index, argument in enumerate(args[:-1]):
        if flag_name(argument) == KV_CACHE_BYTES and "=" not in argument:
            args[index + 1] = str(binding.kv_cache_bytes)
    return tuple(args)


def task_from(document: Mapping[str, Any]) -> Task:
    """The placement task that plan.json holds."""
    instance, reserved = document["instance"], document["reservedBytes"]
    override = document.get("layersOverride")
    return Task(
        layer_bytes=tuple(instance["layerBytes"]),
        layer_kv_bytes=tuple(instance["layerKvBytes"]),
        first_bytes=int(instance["firstStageBytes"]),
        last_bytes=int(instance["lastStageBytes"]),
        fixed_bytes=int(reserved["fixed"]),
        margin=str(reserved["fraction"]),
        tensor=int(document["tensor"]),
        costs=Costs.from_dict(document.get("costs") or {}),
        policy=document["policy"],
        objective=document.get("objective", "latency"),
        layers_override=None if override is None else tuple(override),
    )


def _device(document: Mapping[str, Any], uuid: str) -> Device:
    facts = document["devices"].get(uuid)
    if facts is None:
        raise PlanError("UnknownDevice", f"the plan knows nothing of {uuid}: it is on no node of the plan")
    return Device.from_dict(facts)


def _as_planned(plan: Mapping[str, Any], devices: Sequence[Device], task: Task) -> Assignment | None:
    """The plan's own split, where the pod has the very devices meant for it and they hold it."""
    by_uuid = {device.uuid: device for device in devices}
    groups = tuple(tuple(stage["devices"]) for stage in plan["stages"])
    layers = tuple(plan["layers"])
    if len(groups) != len(layers) or sorted(uuid for group in groups for uuid in group) != sorted(by_uuid):
        return None
    wanted = needs(task, layers)
    if any(need > room(by_uuid[uuid], task) for group, need in zip(groups, wanted, strict=True) for uuid in group):
        return None
    return Assignment(tuple(tuple(by_uuid[uuid] for uuid in group) for group in groups), layers, 0.0)


def _kv_cache_bytes(document: Mapping[str, Any], task: Task, assignment: Assignment) -> int | None:
    tokens = int(document.get("kvTokens") or 0)
    if not tokens:
        return None
    rooms, per_token, a = [], [], 0
    for group, need, count in zip(assignment.groups, needs(task, assignment.layers), assignment.layers, strict=True):
        kv = sum(task.layer_kv_bytes[a : a + count])
        rooms.append(min(room(device, task) for device in group) - need + kv)
        per_token.append(Fraction(kv, tokens))
        a += count
    most = tokens if document["platform"] == "cpu" else None
    return kv_cache(rooms, per_token, most_tokens=most).bytes_told * int(document.get("kvFactor", 1))
