"""Measured rates brought to levels, so that noise does not make each of hundreds of nodes a class of its own.

Measurements of equal GPUs differ by some percent. A few nodes are planned on as they were measured. Where nodes with
GPUs of the same kinds form more classes than that, their figures are brought to levels: a level begins at the slowest
figure that is in no other one, and holds what is faster by less than a step. Each figure is replaced by the slowest of
its level, first among the GPUs and links of a node, then among the nodes. So nothing is promised that some GPU has not,
and differences above a step stay.

Where that leaves too many classes, wider steps are tried: a prediction that is too low is better than none, which is
what hundreds of classes come to. It is lower by as much as equal GPUs differ, twice that at worst. A slow GPU may hold
down those that are faster by less than a step. Levels depend on the figures alone, so plans stay deterministic.

    >>> slowest_of_levels((102.0, 100.0, 101.0, 110.0), 0.03)
    {100.0: 100.0, 101.0: 100.0, 102.0: 100.0, 110.0: 110.0}
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from uellm.hardware import Device, Link
from uellm.planner import constants as c
from uellm.planner.memo import KEPT_NODES, by_identity
from uellm.planner.nodes.node_classes import build, layout
from uellm.planner.nodes.pools import Pool, pools_of
from uellm.planner.nodes.tensor_groups import kind_of
from uellm.planner.request import PlanRequest

_RATES = ("bf16_flops_per_s", "fp16_flops_per_s", "fp8_flops_per_s", "memory_bytes_per_s")

Key = tuple[Any, ...]
"""What figures of one level have in common: the kind of GPU or link, and the figure's name, which comes first."""
Levels = Mapping[Key, Mapping[float, float]]
"""The figure by which each figure is replaced."""


def planning_pools(request: PlanRequest) -> tuple[Pool, ...]:
    """`pools_of`, with levels for figures: what plans are made and judged on."""
    return levelled(pools_of(request))


def levelled(pools: Sequence[Pool]) -> tuple[Pool, ...]:
    """The pools with levels for figures, in the same order."""
    fleets: dict[Hashable, list[int]] = {}
    for position, pool in enumerate(pools):
        fleets.setdefault(_fleet(pool), []).append(position)
    found = list(pools)
    for positions in fleets.values():
        for position, pool in zip(positions, _fleet_on_levels([pools[at] for at in positions]), strict=True):
            found[position] = pool
    return tuple(found)


def _fleet_on_levels(pools: Sequence[Pool]) -> list[Pool]:
    """Nodes with GPUs of the same kinds: as they are, or with the narrowest steps that leave few classes."""
    most = c.MOST_NOISY_CLASSES + len(set(map(layout, pools)))
    found = list(pools)
    if len(set(map(build, found))) <= most:
        return found
    for step in c.LEVEL_STEPS:
        inside = list(map(_INSIDE[step], pools))
        levels = _levels((figure for pool in inside for figure in _figures(pool)), step)
        found = [_among_nodes(pool, levels) for pool in inside]
        if len(set(map(build, found))) <= most:
            break
    return found


def slowest_of_levels(values: Iterable[float], step: float, *, low_is_fast: bool = False) -> dict[float, float]:
    """The slowest figure of each figure's level."""
    levels: dict[float, float] = {}
    slowest: float | None = None
    for value in sorted(set(values), reverse=low_is_fast):
        same = slowest is not None and (value >= slowest / (1 + step) if low_is_fast else value <= slowest * (1 + step))
        if not same:
            slowest = value
        levels[value] = slowest if slowest is not None else value
    return levels


@by_identity(KEPT_NODES)
def _fleet(pool: Pool) -> Hashable:
    return pool.resource_name, pool.simulated, frozenset((kind_of(device), device.mig) for device in pool.devices)


def _inside(step: float, pool: Pool) -> Pool:
    """The node with levels of its own; speeds that the placement of layers takes for equal are."""
    return _changed(pool, _levels(_figures(pool), max(step, c.SPEED_TOLERANCE)))


_INSIDE: Mapping[float, Callable[[Pool], Pool]] = {
    step: by_identity(KEPT_NODES)(partial(_inside, step)) for step in c.LEVEL_STEPS
}


def _levels(figures: Iterable[tuple[Key, float]], step: float) -> Levels:
    values: dict[Key, set[float]] = {}
    for key, value in figures:
        values.setdefault(key, set()).add(value)
    return {
        key: slowest_of_levels(each, step * c.LATENCY_STEPS, low_is_fast=True)
        if key[0] == "latency_s"
        else slowest_of_levels(each, step)
        for key, each in values.items()
    }


_changed_last: dict[int, tuple[Pool, tuple[float, ...], Pool]] = {}


def _among_nodes(pool: Pool, levels: Levels) -> Pool:
    """The node with those levels. The last result for each node is kept: levels seldom move."""
    wanted = tuple(levels[key][value] for key, value in _figures(pool))
    known = _changed_last.get(id(pool))
    if known is None or known[1] != wanted:
        if known is None and len(_changed_last) >= KEPT_NODES:
            del _changed_last[next(iter(_changed_last))]
        known = _changed_last[id(pool)] = pool, wanted, _changed(pool, levels)
    return known[2]


@by_identity(KEPT_NODES)
def _figures(pool: Pool) -> tuple[tuple[Key, float], ...]:
    """Every figure of its devices, and of the links between them, once."""
    return tuple(dict.fromkeys(_all_figures(pool)))


def _all_figures(pool: Pool) -> Iterator[tuple[Key, float]]:
    for device in pool.devices:
        for name in _RATES:
            if value := getattr(device, name):
                yield _device_key(name, device), value
    kinds = _kinds(pool)
    for link in pool.links:
        if link.a in kinds and link.b in kinds:
            if link.bytes_per_s:
                yield _link_key("bytes_per_s", link, kinds), link.bytes_per_s
            if link.latency_s is not None:
                yield _link_key("latency_s", link, kinds), link.latency_s


def _changed(pool: Pool, levels: Levels) -> Pool:
    """The pool with each figure replaced by that of its level; itself where none changes."""
    kinds = _kinds(pool)
    devices = tuple(_device(device, levels) for device in pool.devices)
    links = tuple(_link(link, levels, kinds) if link.a in kinds and link.b in kinds else link for link in pool.links)
    if devices == pool.devices and links == pool.links:
        return pool
    return replace(pool, devices=devices, links=links)


def _device(device: Device, levels: Levels) -> Device:
    rates: dict[str, Any] = {
        name: levels[_device_key(name, device)][value] for name in _RATES if (value := getattr(device, name))
    }
    return replace(device, **rates)


def _link(link: Link, levels: Levels, kinds: Mapping[str, Hashable]) -> Link:
    rate, latency = link.bytes_per_s, link.latency_s
    if rate:
        rate = levels[_link_key("bytes_per_s", link, kinds)][rate]
    if latency is not None:
        latency = levels[_link_key("latency_s", link, kinds)][latency]
    return replace(link, bytes_per_s=rate, latency_s=latency)


def _kinds(pool: Pool) -> dict[str, Any]:
    return {device.uuid: kind_of(device) for device in pool.devices}


def _device_key(name: str, device: Device) -> Key:
    return name, kind_of(device), device.mig


def _link_key(name: str, link: Link, kinds: Mapping[str, Any]) -> Key:
    return name, link.kind, *sorted((kinds[link.a], kinds[link.b]))
