"""From what nodes offer to pools: the free GPUs of a node that one resource name stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from uellm.hardware import Device, Link
from uellm.planner.nodes.capability import unusable
from uellm.planner.request import NodeOffer, PlanRequest


def pools_of(request: PlanRequest) -> tuple[Pool, ...]:
    """Every pool with at least one free device that can run the service, by node and resource name.

    A device plugin hands out any of a node's GPUs of one resource name: where one of them cannot run the service, none
    may be counted on. With exact devices the others are left.
    """
    pools = []
    for pool in (pool for offer in request.nodes for pool in pools_of_offer(offer)):
        able = tuple(device for device in pool.devices if not unusable(device, request))
        if len(able) == len(pool.devices) or (able and request.allocation == "DRA"):
            pools.append(replace(pool, devices=able))
    return tuple(sorted(pools, key=lambda pool: (pool.node, pool.resource_name)))


def pools_of_offer(offer: NodeOffer) -> list[Pool]:
    """The pools of one node. Promises count against each: which devices they will take is not known."""
    free = set(offer.free)
    devices = sorted(
        (device for device in offer.node.devices if device.uuid in free and device.usable),
        key=lambda device: (device.index, device.uuid),
    )
    return [
        Pool(
            node=offer.node.name,
            resource_name=name,
            devices=tuple(device for device in devices if device.resource_name == name),
            links=offer.node.links,
            promised=offer.promised,
            simulated=offer.node.simulated,
        )
        for name in sorted({device.resource_name for device in devices})
    ]


@dataclass(frozen=True, slots=True)
class Pool:
    """The free GPUs of one node that a pod asks for by the same resource name."""

    node: str
    resource_name: str
    devices: tuple[Device, ...]
    """In the order of their index."""
    links: tuple[Link, ...]
    promised: int = 0
    """Of them, how many others will take."""
    simulated: bool = False

    @property
    def sure(self) -> int:
        """How many are there for us whatever the others take."""
        return max(0, len(self.devices) - self.promised)
