"""From devices to stages: the layers of a model placed on the GPUs of one node.

The planner and the launcher both come here, so that a pod which gets the planned devices gets the planned split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from uellm.hardware import Device, Link
from uellm.planner.cost.rates import Costs, Links, performances
from uellm.planner.memory.footprint import reserved_bytes
from uellm.planner.nodes.tensor_groups import group_choices, group_kinds
from uellm.planner.placement.fixed_split import place_fixed
from uellm.planner.placement.infeasible import why
from uellm.planner.placement.instance import Instance, PlaceDevice
from uellm.planner.placement.problem import canonical
from uellm.planner.placement.solver import Placement, solve
from uellm.planner.vllm.partition import even_split


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be placed: everything of a placement but the devices. Sizes are those on each GPU."""

    layer_bytes: tuple[int, ...]
    layer_kv_bytes: tuple[int, ...]
    first_bytes: int
    last_bytes: int
    fixed_bytes: int
    margin: str
    tensor: int
    costs: Costs
    policy: str = "HELR"
    objective: str = "latency"
    layers_override: tuple[int, ...] | None = None

    def fixed_layers(self, stages: int) -> tuple[int, ...] | None:
        """The split where it is not the solver's to choose: the user's, or vLLM's own under policy Even."""
        if self.layers_override is not None:
            return self.layers_override
        return even_split(len(self.layer_bytes), stages) if self.policy == "Even" else None


@dataclass(frozen=True, slots=True)
class Assignment:
    """Stages in pipeline order: the devices of each, and its layers. `cost` is the solver's, in seconds.

    `lower_bound` is what no placement on so many of the devices can beat; the cost itself where that is proven.
    """

    groups: tuple[tuple[Device, ...], ...]
    layers: tuple[int, ...]
    cost: float
    lower_bound: float = 0.0

    @property
    def devices(self) -> tuple[Device, ...]:
        """Devices in rank order."""
        return tuple(device for group in self.groups for device in group)


def assign(devices: Sequence[Device], links: Sequence[Link], task: Task, stages: int) -> Assignment | str:
    """The best placement on exactly `stages` groups of the devices, or the sentence why there is none."""
    if reason := _too_few_groups(devices, task, stages):
        return reason
    found: list[Assignment] = []
    reason = ""
    for groups in group_choices(devices, links, task.tensor, stages, task.costs):
        placement = _solve(_instance(groups, links, task), task, stages)
        if placement.feasible:
            chosen = tuple(groups[int(name.removeprefix("@"))] for name in placement.order)
            cost, bound = placement.cost or 0.0, placement.lower_bound
            found.append(Assignment(chosen, placement.layers, cost, cost if bound is None else bound))
        else:
            reason = reason or placement.reason
    if not found:
        return reason
    best = min(found, key=lambda entry: entry.cost)
    return replace(best, lower_bound=min(entry.lower_bound for entry in found))


def explain(devices: Sequence[Device], links: Sequence[Link], task: Task, stages: int) -> str:
    """Why no placement exists, without searching for one."""
    if reason := _too_few_groups(devices, task, stages):
        return reason
    instance = _instance(next(group_choices(devices, links, task.tensor, stages, task.costs)), links, task)
    layers = task.fixed_layers(stages)
    if layers is not None:
        return place_fixed(instance, layers).reason
    reason = why(instance, canonical(instance), stages)
    return reason if task.tensor == 1 else f"on each GPU of {task.tensor} that share layers, {reason}"


def _too_few_groups(devices: Sequence[Device], task: Task, stages: int) -> str:
    groups = len(group_kinds(devices, task.tensor))
    return "" if groups >= stages else f"needs {stages} groups of {task.tensor} identical GPUs; there are {groups}"


def settled(devices: Sequence[Device], links: Sequence[Link], task: Task, stages: int) -> Assignment | str:
    """`assign`, and once more on the chosen devices alone: exactly what a pod with those devices will find."""
    first = assign(devices, links, task, stages)
    return first if isinstance(first, str) else assign(first.devices, links, task, stages)


def _instance(groups: Sequence[tuple[Device, ...]], links: Sequence[Link], task: Task) -> Instance:
    known = Links(links)
    slowest = performances([device for group in groups for device in group], task.costs)
    members = [
        PlaceDevice(
            id=f"gpu-{group[0].index} ({group[0].uuid})",
            memory_bytes=min(device.memory_bytes for device in group),
            reserved_bytes=reserved_bytes(task.fixed_bytes, task.margin, min(device.memory_bytes for device in group)),
            performance=min(slowest[position * task.tensor : (position + 1) * task.tensor]),
        )
        for position, group in enumerate(groups)
    ]
    hops = tuple(
        tuple(
            0.0 if a is b else max(known.hop_s(x.uuid, y.uuid, task.costs) for x, y in zip(a, b, strict=True))
            for b in groups
        )
        for a in groups
    )
    return Instance(
        layer_bytes=task.layer_bytes,
        layer_kv_bytes=task.layer_kv_bytes,
        devices=tuple(members),
        latency_s=hops,
        first_stage_bytes=task.first_bytes,
        last_stage_bytes=task.last_bytes,
    )


def _solve(instance: Instance, task: Task, stages: int) -> Placement:
    """Solved once for all nodes that are built alike: only positions tell their devices apart."""
    # Ids that no sentence holds by chance, and whose order is that of the devices' indices.
    names = [f"@{position:04d}" for position in range(len(instance.devices))]
    alike = replace(
        instance, devices=tuple(replace(device, id=name) for name, device in zip(names, instance.devices, strict=True))
    )
    placement = _solved(alike, task.policy, task.objective, stages, task.fixed_layers(stages))
    reason = placement.reason
    for name, device in zip(names, instance.devices, strict=True):
        reason = reason.replace(name, device.id)
    return replace(placement, reason=reason)


@lru_cache(maxsize=512)
def _solved(instance: Instance, policy: str, objective: str, stages: int, layers: tuple[int, ...] | None) -> Placement:
    if layers is not None:
        return place_fixed(instance, layers, objective)
    if policy == "BGS":
        # Greedy may miss what fits; a pod that holds such devices must run all the same.
        greedy = solve(instance, "BGS", objective, stages=stages)
        return greedy if greedy.feasible else solve(instance, "HELR", objective, stages=stages)
    return solve(instance, policy, objective, stages=stages)
