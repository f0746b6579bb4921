"""What earlier searches have worked out for nodes of the same build, so that the next one need not do it again.

Thousands of searches ask about the same models on the same builds of nodes. Where a model is placed on a node of a
build, how much KV cache is left and how fast it is depends on the devices, links, sizes and demand, and on no name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from uellm.hardware import Device
from uellm.planner.assignment.assign import Assignment
from uellm.planner.cost.predict import Times
from uellm.planner.memo import KEPT_NODES, by_identity
from uellm.planner.memory.footprint import Footprint
from uellm.planner.memory.kv_cache import KvCache
from uellm.planner.nodes.pools import Pool
from uellm.planner.nodes.tensor_groups import kind_of

KEPT_FIGURES = 4096

V = TypeVar("V")


class Figures(NamedTuple):
    """The memory and the speed of a placement."""

    footprint: Footprint
    kv: KvCache
    times: Times | None


class Worked(NamedTuple):
    """A placement and its figures, on any node of a build."""

    groups: tuple[tuple[int, ...], ...]
    """Positions of the devices in the node's pool."""
    layers: tuple[int, ...]
    cost: float
    lower_bound: float
    figures: Figures

    @classmethod
    def of(cls, pool: Pool, assignment: Assignment, figures: Figures) -> Worked:
        """What was worked out on a pool."""
        position = {device.uuid: index for index, device in enumerate(pool.devices)}
        groups = tuple(tuple(position[device.uuid] for device in group) for group in assignment.groups)
        return cls(groups, assignment.layers, assignment.cost, assignment.lower_bound, figures)

    def on(self, pool: Pool) -> Assignment:
        """The same placement on the devices of another pool of the build."""
        groups = tuple(tuple(pool.devices[index] for index in group) for group in self.groups)
        return Assignment(groups, self.layers, self.cost, self.lower_bound)


class Essence:
    """What the figures depend on besides the node and the shape, with a hash that is computed once."""

    __slots__ = ("_hash", "_values")

    def __init__(self, *values: Hashable) -> None:
        self._values = values
        self._hash = hash(values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Essence) and self._values == other._values


class Known(Generic[V]):
    """Results by what they depend on; the least recently used are dropped."""

    def __init__(self) -> None:
        self._results: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """An earlier result."""
        found = self._results.get(key)
        if found is not None:
            self._results.move_to_end(key)
        return found

    def put(self, key: Hashable, result: V) -> None:
        """Keep a result."""
        self._results[key] = result
        if len(self._results) > KEPT_FIGURES:
            self._results.popitem(last=False)


def build_of(pool: Pool) -> Hashable:
    """Equal for pools whose devices and links differ in nothing but names; between nodes all links are the same."""
    if not pool.members:
        return _build_of_node(pool)
    return Essence(*map(_build_of_node, pool.members), pool.network.bytes_per_s, pool.network.latency_s)


@by_identity(KEPT_NODES)
def _build_of_node(pool: Pool) -> Hashable:
    """Devices are ordered by index already."""
    position = {device.uuid: index for index, device in enumerate(pool.devices)}
    links = tuple(
        (position[link.a], position[link.b], link.kind, link.bytes_per_s, link.latency_s)
        for link in pool.links
        if link.a in position and link.b in position
    )
    return Essence(pool.simulated, tuple(map(_rates, pool.devices)), links)


def _rates(device: Device) -> Hashable:
    rates = device.bf16_flops_per_s, device.fp16_flops_per_s, device.fp8_flops_per_s, device.memory_bytes_per_s
    return kind_of(device), device.mig, device.resource_name, rates
