"""Late binding: the layers placed on the devices that a pod really got.

With a device plugin the kubelet picks devices, and the scheduler may pick a node that joined after the plan was made.
So what a device is comes from the first of these that knows it: devices.json; the driver, or on a simulated node its
device plugin; the plan's class of GPUs, where there is only one. A pod that has the devices meant for the first replica
gets the planned split; otherwise the planner's own solver decides on what is there, for the same policy. A pod that
claims its devices gets the planned split on them in the order of the claim, whose requests are the stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from uellm.errors import PlanError
from uellm.hardware import Device, DeviceClass
from uellm.planner.assignment.assign import Assignment, assign
from uellm.planner.assignment.every_subset import room
from uellm.planner.assignment.feasibility import needs
from uellm.planner.constants import SAME_CLASS
from uellm.planner.handover.device_facts import NO_FACTS, DeviceFacts
from uellm.planner.handover.plan_document import PlanDocument, PlannedEngine
from uellm.planner.memory.kv_cache import kv_cache
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.refusals.sentences import sentence
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
    """What every rank allocates; None: as in the plan's flags."""
    devices: tuple[Device, ...] = ()
    """What the devices are, in rank order."""


def bind(
    document: PlanDocument,
    uuids: Sequence[str],
    *,
    advice: DeviceFacts = NO_FACTS,
    seen: DeviceFacts = NO_FACTS,
    claimed: Sequence[str] = (),
) -> Binding:
    """The binding of these devices. Raises PlanError: UnknownDevice, WrongDeviceCount, or NoFit with the amount.

    `advice`: devices.json; `seen`: the devices as the driver, or a simulated node's device plugin, describes them;
    `claimed`: the devices in the order of the pod's claim, where that is known.
    """
    task = document.task
    unique = tuple(dict.fromkeys(uuids))
    stages = document.gpus // task.tensor
    if len(unique) != stages * task.tensor:
        raise PlanError(
            "WrongDeviceCount",
            f"the pod has {counted(len(unique), 'GPU')} and the plan is for {stages * task.tensor} (tensor "
            f"{task.tensor} x pipeline {stages}): request as many GPUs as the plan has",
        )
    devices = [device_of(document, uuid, index, advice, seen) for index, uuid in enumerate(unique)]
    assignment = _as_claimed(document, devices, claimed) or _as_planned(document, devices, advice.planned)
    if assignment is None:
        answer = assign(devices, (*seen.links, *advice.links), task, stages)
        if isinstance(answer, PlanRefusal):
            raise PlanError("NoFit", f"the pod's GPUs cannot hold the plan: {sentence(answer)}")
        assignment = answer
    order = tuple(device.uuid for device in assignment.devices)
    kv_cache_bytes = kv_cache_of(document, assignment)
    return Binding(order, assignment.layers, task.tensor, stages, kv_cache_bytes, assignment.devices)


def device_of(document: PlanDocument, uuid: str, index: int, advice: DeviceFacts, seen: DeviceFacts) -> Device:
    """What a device is. Raises PlanError UnknownDevice where nothing knows it."""
    if (known := advice.devices.get(uuid)) is not None:
        return known
    if (device := seen.devices.get(uuid)) is not None:
        device = _with_rates(device, document.classes)
        if device.memory_bytes:
            return device
    if len(document.classes) == 1:
        return replace(document.classes[0].typical, uuid=uuid, index=index)
    products = ", ".join(each.typical.product or "unnamed GPUs" for each in document.classes) or "no GPU"
    raise PlanError(
        "UnknownDevice",
        f"device {uuid} is unknown: neither the driver nor devices.json describes it, and the plan is for "
        f"several products ({products}); see that nvidia-smi is in the image",
    )


def _with_rates(device: Device, classes: Sequence[DeviceClass]) -> Device:
    """The device as it was seen; what was not measured on it is taken from its class."""
    near = [(share, each) for each in classes if (share := _difference(each, device)) is not None]
    if not near:
        return device
    share, nearest = min(near, key=lambda entry: entry[0])
    typical = nearest.typical
    if share > SAME_CLASS:
        return device
    return replace(
        device,
        # The driver rounds to MiB; the class has the bytes.
        memory_bytes=device.memory_bytes or typical.memory_bytes,
        compute_capability=device.compute_capability or typical.compute_capability,
        bf16_flops_per_s=device.bf16_flops_per_s or typical.bf16_flops_per_s,
        fp16_flops_per_s=device.fp16_flops_per_s or typical.fp16_flops_per_s,
        memory_bytes_per_s=device.memory_bytes_per_s or typical.memory_bytes_per_s,
    )


def _difference(of: DeviceClass, device: Device) -> float | None:
    """A MIG slice whose memory the driver does not report belongs to the class of its product."""
    if not device.memory_bytes:
        return 0.0 if device.product == of.typical.product else None
    return of.differs_by(device.product, device.memory_bytes)


def engine_args(engine: PlannedEngine, binding: Binding) -> tuple[str, ...]:
    """The engine's arguments with the KV cache of this binding: another split has another tightest stage."""
    args = list(engine.args)
    if binding.kv_cache_bytes is None:
        return tuple(args)
    for index, argument in enumerate(args[:-1]):
        if flag_name(argument) == KV_CACHE_BYTES and "=" not in argument:
            args[index + 1] = str(binding.kv_cache_bytes)
    return tuple(args)


def _as_planned(document: PlanDocument, devices: Sequence[Device], planned: Sequence[str]) -> Assignment | None:
    """The plan's own split, where the pod has the very devices meant for it and they hold it."""
    return _in_order(document, devices, planned)


def _as_claimed(document: PlanDocument, devices: Sequence[Device], claimed: Sequence[str]) -> Assignment | None:
    """The plan's own split on the devices in the order of the claim, where each is what its stage asks for."""
    found = _in_order(document, devices, claimed) if document.claimed else None
    if found is None:
        return None
    stages = zip(document.claimed, found.groups, strict=True)
    met = (each.met_by(device.product, device.memory_bytes) for each, group in stages for device in group)
    return found if all(met) else None


def _in_order(document: PlanDocument, devices: Sequence[Device], order: Sequence[str]) -> Assignment | None:
    """The plan's own split on the devices in this order; None where it is not theirs, or they cannot hold it."""
    by_uuid = {device.uuid: device for device in devices}
    task, layers = document.task, document.layers
    if len(layers) * task.tensor != len(order) or sorted(order) != sorted(by_uuid):
        return None
    ordered = [by_uuid[uuid] for uuid in order]
    groups = tuple(tuple(ordered[at : at + task.tensor]) for at in range(0, len(ordered), task.tensor))
    wanted = needs(task, layers)
    if any(need > room(device, task) for group, need in zip(groups, wanted, strict=True) for device in group):
        return None
    return Assignment(groups, layers, 0.0)


def kv_cache_of(document: PlanDocument, assignment: Assignment) -> int | None:
    """Bytes of KV cache that every rank allocates; None: as in the plan's flags."""
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
