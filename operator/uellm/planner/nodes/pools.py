"""Pools: the free GPUs of a node with the same resource name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from uellm.hardware import Device, Link
from uellm.planner.constants import MOST_REPLICAS
from uellm.planner.memo import KEPT_NODES, by_identity
from uellm.planner.nodes.capability import SHARE_MARK, device_refusal
from uellm.planner.nodes.product_rates import with_product_rates
from uellm.planner.request import NodeOffer, PlanRequest


def pools_of(request: PlanRequest) -> tuple[Pool, ...]:
    """Every pool with at least one free device that can run the service, by node and resource name.

    A device plugin may allocate any of a node's GPUs with the resource name. If one of them cannot run the service, the
    pool is left out. With allocation DRA, only that GPU is left out.
    """
    pools = []
    for pool in (pool for offer in request.nodes for pool in known_pools(offer)):
        if all(device_refusal(device, request) is None for device in _unlike(pool)):
            pools.append(pool)
            continue
        able = tuple(device for device in pool.devices if device_refusal(device, request) is None)
        if able and request.allocation == "DRA":
            pools.append(replace(pool, devices=able))
    return tuple(sorted(pools, key=lambda pool: (pool.node, pool.resource_name)))


def pools_of_offer(offer: NodeOffer) -> tuple[Pool, ...]:
    """The pools of one node. Promised GPUs count against every pool: which devices they will be is not known."""
    free, node = set(offer.free), with_product_rates(offer.node)
    devices = sorted(
        (device for device in node.devices if device.uuid in free and device.usable),
        key=lambda device: (device.index, device.uuid),
    )
    return tuple(
        Pool(
            node=node.name,
            resource_name=name,
            devices=tuple(device for device in devices if device.resource_name == name),
            links=node.links,
            promised=offer.promised,
            simulated=node.simulated,
            copies=MOST_REPLICAS if offer.node_class else 1,
        )
        for name in sorted({device.resource_name for device in devices})
    )


known_pools = by_identity(KEPT_NODES)(pools_of_offer)
"""The same, kept for offers that are asked about again."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The free GPUs of one node that a pod requests by the same resource name."""

    node: str
    resource_name: str
    devices: tuple[Device, ...]
    """Ordered by index."""
    links: tuple[Link, ...]
    promised: int = 0
    """How many of the devices other services will take."""
    simulated: bool = False
    copies: int = 1
    """How many such nodes there may be: more than one where the node would join."""

    @property
    def sure(self) -> int:
        """The number of GPUs that are free whichever devices other services take."""
        return max(0, len(self.devices) - self.promised)


@by_identity(KEPT_NODES)
def _unlike(pool: Pool) -> tuple[Device, ...]:
    """One device of each sort that `device_refusal` distinguishes."""
    sorts = {
        (
            device.product,
            device.compute_capability,
            device.resource_name,
            device.shares,
            SHARE_MARK in device.uuid,
        ): device
        for device in pool.devices
    }
    return tuple(sorts.values())
