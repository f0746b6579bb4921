"""Groups nodes, so that a cluster of hundreds is planned quickly.

Identical nodes form a class and are evaluated once (levels.py makes nodes identical that differ by noise). Similar
classes form a family. A family's ideal node is at least as
fast as each of its nodes, so it bounds what the family can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from uellm.hardware import NVLINK, Device, Link
from uellm.planner.cost.rates import measured
from uellm.planner.memo import KEPT_NODES, by_identity
from uellm.planner.nodes.groups import room
from uellm.planner.nodes.pools import Pool
from uellm.planner.nodes.tensor_groups import kind_of


@dataclass(frozen=True, slots=True)
class PoolClass:
    """Pools that differ only in their names."""

    pools: tuple[Pool, ...]
    """Ordered by node and resource name."""

    @property
    def pool(self) -> Pool:
        """The first pool, which represents all."""
        return self.pools[0]

    def room(self, gpus: int) -> int:
        """The number of replicas with this many GPUs each that fit now."""
        return sum(room(pool, gpus) for pool in self.pools)


@dataclass(frozen=True, slots=True)
class PoolFamily:
    """Classes with the same numbers of the same kinds of GPUs, and different measurements."""

    classes: tuple[PoolClass, ...]
    ideal: Pool
    """Each GPU is as good as the best of its kind in the family, each link as good as the best link."""


def family_of(group: Pool) -> PoolFamily:
    """The family of a group of nodes: it is evaluated as it is."""
    return PoolFamily((PoolClass((group,)),), group)


def families_of(pools: Sequence[Pool]) -> tuple[PoolFamily, ...]:
    """The pools by family and class; families are ordered by the name of their first pool."""
    ordered = sorted(pools, key=lambda pool: (pool.node, pool.resource_name))
    by_build: dict[Any, list[Pool]] = {}
    for pool in ordered:
        by_build.setdefault(build(pool), []).append(pool)
    by_kind: dict[Any, list[PoolClass]] = {}
    for alike in by_build.values():
        by_kind.setdefault(_kinds(alike[0]), []).append(PoolClass(tuple(alike)))
    return tuple(PoolFamily(tuple(classes), _ideal(classes)) for classes in by_kind.values())


@by_identity(KEPT_NODES)
def build(pool: Pool) -> Any:
    """Equal for pools that differ in nothing but names."""
    position = {device.uuid: index for index, device in enumerate(pool.devices)}
    links = sorted(
        (
            position[link.a],
            position[link.b],
            link.kind,
            link.bytes_per_s or 0.0,
            -1.0 if (s := link.latency_s) is None else s,
        )
        for link in pool.links
        if link.a in position and link.b in position
    )
    return _offer(pool), tuple(map(_facts, pool.devices)), tuple(links)


@by_identity(KEPT_NODES)
def layout(pool: Pool) -> Any:
    """Equal for pools that differ in nothing but names and figures."""
    position = {device.uuid: index for index, device in enumerate(pool.devices)}
    links = sorted(
        (position[link.a], position[link.b], link.kind)
        for link in pool.links
        if link.a in position and link.b in position
    )
    return _offer(pool), tuple((kind_of(device), device.mig) for device in pool.devices), tuple(links)


@by_identity(KEPT_NODES)
def _kinds(pool: Pool) -> Any:
    kinds = sorted((kind_of(device), device.mig, measured(device)) for device in pool.devices)
    linked = frozenset(link.kind for link in pool.links), all(link.bytes_per_s for link in pool.links)
    return _offer(pool), tuple(kinds), linked


def _offer(pool: Pool) -> Any:
    return pool.resource_name, pool.simulated, pool.promised, len(pool.devices)


def _facts(device: Device) -> Any:
    rates = device.bf16_flops_per_s, device.fp16_flops_per_s, device.fp8_flops_per_s, device.memory_bytes_per_s
    return kind_of(device), device.mig, rates


def _ideal(classes: Sequence[PoolClass]) -> Pool:
    """The family's ideal pool: no placement on a pool of the family is faster than the same placement on this one."""
    first = classes[0].pool
    if len(classes) == 1:
        return first
    everyone = [device for entry in classes for device in entry.pool.devices]
    devices = tuple(
        _best(device, [other for other in everyone if kind_of(other) == kind_of(device)]) for device in first.devices
    )
    return replace(first, devices=devices, links=_best_links(devices, [entry.pool for entry in classes]))


def _best(device: Device, alike: Sequence[Device]) -> Device:
    return replace(
        device,
        bf16_flops_per_s=_most(other.bf16_flops_per_s for other in alike),
        fp16_flops_per_s=_most(other.fp16_flops_per_s for other in alike),
        fp8_flops_per_s=_most(other.fp8_flops_per_s for other in alike),
        memory_bytes_per_s=_most(other.memory_bytes_per_s for other in alike),
    )


def _most(values: Any) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _best_links(devices: Sequence[Device], pools: Sequence[Pool]) -> tuple[Link, ...]:
    links = [link for pool in pools for link in pool.links]
    if not links:
        return ()
    kind = NVLINK if any(link.kind == NVLINK for link in links) else links[0].kind
    rate = _most(link.bytes_per_s for link in links)
    latency = min((link.latency_s for link in links if link.latency_s is not None), default=None)
    return tuple(Link(a.uuid, b.uuid, kind, rate, latency) for a in devices for b in devices if a is not b)
