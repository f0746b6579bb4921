"""From what nodes offer to pools: the free GPUs of a node that one resource name stands for."""

from __future__ import annotations

from uellm.planner.request import NodeOffer, PlanRequest
from uellm.planner.subsets import Pool


def pools_of(request: PlanRequest) -> tuple[Pool, ...]:
    """Every pool with at least one free device, by node and resource name, whatever order the nodes come in."""
    pools = [pool for offer in request.nodes for pool in pools_of_offer(offer)]
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
