"""From devices to stages: places the layers of a model on the GPUs of one node.

Planner and launcher both use it, so a pod that gets the planned devices also gets the planned split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from uellm.hardware import Device, Link
from uellm.placement_policies import DEFAULT_PLACEMENT_POLICY
from uellm.planner.cost.rates import Costs, Links, performances
from uellm.planner.memory.footprint import reserved_bytes
from uellm.planner.nodes.tensor_groups import group_choices, group_kinds
from uellm.planner.placement.fixed_split import place_fixed
from uellm.planner.placement.infeasible import refusal_of
from uellm.planner.placement.instance import Instance, PlaceDevice
from uellm.planner.placement.problem import canonical
from uellm.planner.placement.solver import Placement, solve
from uellm.planner.refusals.kinds import PlanRefusal, TooFewGroups
from uellm.planner.vllm.partition import even_split


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that a placement needs except the devices. Sizes are those on each GPU."""

    layer_bytes: tuple[int, ...]
    layer_kv_bytes: tuple[int, ...]
    first_bytes: int
    last_bytes: int
    fixed_bytes: int
    margin: str
    tensor: int
    costs: Costs
    policy: str = DEFAULT_PLACEMENT_POLICY
    objective: str = "latency"
    layers_override: tuple[int, ...] | None = None

    def fixed_layers(self, stages: int) -> tuple[int, ...] | None:
        """The split, where the solver does not choose it: the user's, or vLLM's own under policy Even."""
        if self.layers_override is not None:
            return self.layers_override
        return even_split(len(self.layer_bytes), stages) if self.policy == "Even" else None


@dataclass(frozen=True, slots=True)
class Assignment:
    """Stages in pipeline order: the devices of each, and its layers. `cost` is the solver's, in seconds.

    No placement on this number of the devices costs less than `lower_bound`; it equals the cost where that is proven
    optimal.
    """

    groups: tuple[tuple[Device, ...], ...]
    layers: tuple[int, ...]
    cost: float
    lower_bound: float = 0.0

    @property
    def devices(self) -> tuple[Device, ...]:
        """Devices in rank order."""
        return tuple(device for group in self.groups for device in group)


def assign(devices: Sequence[Device], links: Sequence[Link], task: Task, stages: int) -> Assignment | PlanRefusal:
    """The best placement on exactly `stages` groups of the devices, or why there is none."""
    if refusal := _too_few_groups(devices, task, stages):
        return refusal
    found: list[Assignment] = []
    refusals: list[PlanRefusal] = []
    for groups in group_choices(devices, links, task.tensor, stages, task.costs):
        instance = instance_of(groups, links, task)
        placement = _solved(instance, task.policy, task.objective, stages, task.fixed_layers(stages))
        if placement.feasible:
            chosen = tuple(groups[int(position)] for position in placement.order)
            cost, bound = placement.cost or 0.0, placement.lower_bound
            found.append(Assignment(chosen, placement.layers, cost, cost if bound is None else bound))
        elif placement.refusal is not None:
            refusals.append(placement.refusal.renamed(position_names(groups)))
    if not found:
        return refusals[0]
    best = min(found, key=lambda entry: entry.cost)
    return replace(best, lower_bound=min(entry.lower_bound for entry in found))


def explain(devices: Sequence[Device], links: Sequence[Link], task: Task, stages: int) -> PlanRefusal:
    """Why no placement exists, without a search for one."""
    if refusal := _too_few_groups(devices, task, stages):
        return refusal
    groups = next(group_choices(devices, links, task.tensor, stages, task.costs))
    instance, layers = instance_of(groups, links, task), task.fixed_layers(stages)
    found = (
        refusal_of(instance, canonical(instance), stages) if layers is None else place_fixed(instance, layers).refusal
    )
    assert found is not None
    return found.renamed(position_names(groups))


def _too_few_groups(devices: Sequence[Device], task: Task, stages: int) -> PlanRefusal | None:
    groups = len(group_kinds(devices, task.tensor))
    return None if groups >= stages else TooFewGroups(stages, task.tensor, groups)


def settled(devices: Sequence[Device], links: Sequence[Link], task: Task, stages: int) -> Assignment | PlanRefusal:
    """`assign`, repeated on the chosen devices only: the result that a pod with exactly those devices will compute."""
    first = assign(devices, links, task, stages)
    return first if isinstance(first, PlanRefusal) else assign(first.devices, links, task, stages)


def _position(index: int) -> str:
    """A device's id in an instance: its position, so that nodes of the same build share a cached solution."""
    return f"{index:04d}"


def position_names(groups: Sequence[tuple[Device, ...]]) -> dict[str, str]:
    """The name of each group's first device, by its id in the instance."""
    return {_position(index): f"gpu-{group[0].index} ({group[0].uuid})" for index, group in enumerate(groups)}


def instance_of(groups: Sequence[tuple[Device, ...]], links: Sequence[Link], task: Task) -> Instance:
    """The groups as the devices of a placement problem, by their positions."""
    known = Links(links)
    slowest = performances([device for group in groups for device in group], task.costs)
    members = [
        PlaceDevice(
            id=_position(index),
            memory_bytes=min(device.memory_bytes for device in group),
            reserved_bytes=reserved_bytes(task.fixed_bytes, task.margin, min(device.memory_bytes for device in group)),
            performance=min(slowest[index * task.tensor : (index + 1) * task.tensor]),
        )
        for index, group in enumerate(groups)
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


@lru_cache(maxsize=512)
def _solved(instance: Instance, policy: str, objective: str, stages: int, layers: tuple[int, ...] | None) -> Placement:
    if layers is not None:
        return place_fixed(instance, layers, objective)
    if policy == "BGS":
        # Greedy may find nothing where something fits. A pod that already has these devices must still run.
        greedy = solve(instance, "BGS", objective, stages=stages)
        return greedy if greedy.feasible else solve(instance, DEFAULT_PLACEMENT_POLICY, objective, stages=stages)
    return solve(instance, policy, objective, stages=stages)
