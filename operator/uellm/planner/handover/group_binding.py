"""Late binding of a replica that spans nodes: the layers placed on the devices of all its pods.

The pods' order is that of the stages, and says nothing of which node each of them is on. So the planned parts may be
dealt out in another order than planned: the cheapest that fits. Inside a pod the planner's own solver orders the
devices, and splits the part anew where it fits no other way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from uellm.errors import PlanError
from uellm.hardware import Device, Link
from uellm.planner.assignment.assign import Assignment, Task, assign
from uellm.planner.assignment.parts import part_tasks, parts_of
from uellm.planner.constants import MOST_PART_ORDERS
from uellm.planner.handover.device_facts import NO_FACTS, DeviceFacts
from uellm.planner.handover.late_binding import Binding, device_of, kv_cache_of
from uellm.planner.handover.plan_document import PlanDocument
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.refusals.sentences import sentence
from uellm.text import counted

Part = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PodDevices:
    """The devices of one pod of the group."""

    pod: str
    uuids: tuple[str, ...]
    seen: DeviceFacts = NO_FACTS
    """As the driver, or a simulated node's device plugin, describes them."""


def bind_group(document: PlanDocument, pods: Sequence[PodDevices], *, advice: DeviceFacts = NO_FACTS) -> Binding:
    """The binding of the devices of all pods, in their order. Raises PlanError as `late_binding.bind` does."""
    task, nodes = document.task, document.nodes
    stages = document.gpus // task.tensor
    wanted = document.gpus // nodes
    if other := next((pod for pod in pods if len(set(pod.uuids)) != wanted), None):
        raise PlanError(
            "WrongDeviceCount",
            f"pod {other.pod} has {counted(len(set(other.uuids)), 'GPU')} and each of the {nodes} pods of a replica is "
            f"to have {wanted}: request as many GPUs as the plan has",
        )
    devices = [
        [device_of(document, uuid, index, advice, pod.seen) for index, uuid in enumerate(dict.fromkeys(pod.uuids))]
        for pod in pods
    ]
    links = (*(link for pod in pods for link in pod.seen.links), *advice.links)
    found = _best(document, devices, links, pods)
    order = tuple(device.uuid for device in found.devices)
    return Binding(order, found.layers, task.tensor, stages, kv_cache_of(document, found), found.devices)


def _best(
    document: PlanDocument, devices: Sequence[Sequence[Device]], links: Sequence[Link], pods: Sequence[PodDevices]
) -> Assignment:
    task, nodes = document.task, document.nodes
    refused = ""
    for free in (False, True):
        if free and task.layers_override is not None:
            break
        found: list[Assignment] = []
        for parts in _orders(parts_of(document.layers, nodes), fixed=task.layers_override is not None):
            answer = _placed(task, parts, devices, links, free=free)
            if isinstance(answer, Assignment):
                found.append(answer)
            elif not refused:
                index, refusal = answer
                refused = f"pod {pods[index].pod} cannot hold its part: {sentence(refusal)}"
        if found:
            return min(found, key=lambda entry: entry.cost)
    raise PlanError("NoFit", f"the GPUs of the group cannot hold the plan: {refused}")


def _placed(
    task: Task, parts: Sequence[Part], devices: Sequence[Sequence[Device]], links: Sequence[Link], *, free: bool
) -> Assignment | tuple[int, PlanRefusal]:
    """Each part on its pod's devices; or the pod on which one has no place, and why."""
    layers = tuple(count for part in parts for count in part)
    answers: list[Assignment] = []
    for index, (each, own) in enumerate(zip(part_tasks(task, layers, len(parts)), devices, strict=True)):
        answer = assign(own, links, replace(each, layers_override=None) if free else each, len(parts[index]))
        if isinstance(answer, PlanRefusal):
            return index, answer
        answers.append(answer)
    costs = [answer.cost for answer in answers]
    return Assignment(
        tuple(group for answer in answers for group in answer.groups),
        tuple(count for answer in answers for count in answer.layers),
        max(costs) if task.objective == "bottleneck" else sum(costs),
    )


def _orders(parts: Sequence[Part], *, fixed: bool) -> Iterator[Sequence[Part]]:
    """The parts as planned, then in every other order that differs."""
    yield parts
    if not fixed:
        yield from (
            order for order in islice(_permuted(Counter(parts), len(parts)), MOST_PART_ORDERS) if order != parts
        )


def _permuted(left: Counter[Part], count: int) -> Iterator[list[Part]]:
    if not count:
        yield []
        return
    for part in list(left):
        if left[part]:
            left[part] -= 1
            yield from ([part, *others] for others in _permuted(left, count - 1))
            left[part] += 1
