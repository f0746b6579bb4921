"""Pools: the free GPUs of a node with the same resource name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from uellm.hardware import DRA, Device, Link, NetworkLink, Node
from uellm.planner.constants import MOST_NODES_NAMED, MOST_REPLICAS
from uellm.planner.memo import KEPT_NODES, by_identity
from uellm.planner.nodes.capability import SHARE_MARK, device_refusal
from uellm.planner.nodes.network import ASSUMED_NETWORK, NetworkRate
from uellm.planner.nodes.product_rates import with_product_rates
from uellm.planner.request import NodeOffer, PlanRequest


def pools_of(request: PlanRequest) -> tuple[Pool, ...]:
    """Every pool with at least one free device that can run the service, by node and resource name.

    A device plugin may allocate any of a node's GPUs with the resource name. If one of them cannot run the service, the
    pool is left out. With allocation DRA, only that GPU is left out; so are those that no driver publishes.
    """
    if request.allocation == DRA:
        return _claimable_pools(request)
    pools = []
    for pool in (_without_claims_only(pool) for offer in request.nodes for pool in known_pools(offer)):
        if pool.devices and all(device_refusal(device, request) is None for device in _unlike(pool)):
            pools.append(pool)
    return _ordered(pools)


def _without_claims_only(pool: Pool) -> Pool:
    devices = tuple(device for device in pool.devices if not device.claims_only)
    return pool if len(devices) == len(pool.devices) else replace(pool, devices=devices)


def _claimable_pools(request: PlanRequest) -> tuple[Pool, ...]:
    published_only = drivers_known(offer.node for offer in request.nodes)
    pools = []
    for pool in (pool for offer in request.nodes for pool in known_pools(offer)):
        claimable = (device for device in pool.devices if is_claimable(device, published_only=published_only))
        able = tuple(device for device in claimable if device_refusal(device, request) is None)
        if able == pool.devices:
            pools.append(pool)
        elif able:
            pools.append(replace(pool, devices=able))
    return _ordered(pools)


def _ordered(pools: Iterable[Pool]) -> tuple[Pool, ...]:
    return tuple(sorted(pools, key=lambda pool: (pool.node, pool.resource_name)))


def drivers_known(nodes: Iterable[Node]) -> bool:
    """Whether it is known which GPUs DRA drivers publish: it is not in a file of profiles."""
    return any(device.published is not None for node in nodes for device in node.devices)


def is_claimable(device: Device, *, published_only: bool) -> bool:
    """Whether a ResourceClaim may ask for it as a whole GPU: no slice, lent to one pod, and offered by a driver."""
    return not device.mig and device.shares == 1 and (device.published is not None or not published_only)


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
            peers=node.network,
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
    members: tuple[Pool, ...] = ()
    """Of a group of nodes: its nodes in the order of their stages (groups.py). Empty for one node."""
    kin: tuple[Pool, ...] = ()
    """Of a group: all nodes that could be its members, those with the most free GPUs first."""
    peers: tuple[NetworkLink, ...] = ()
    """The network from the node to others, as far as it was measured."""
    network: NetworkRate = ASSUMED_NETWORK
    """Of a group: between its nodes."""

    @property
    def sure(self) -> int:
        """The number of GPUs that are free whichever devices other services take; of a group, as many on each node."""
        if self.members:
            return len(self.members) * min(member.sure for member in self.members)
        return max(0, len(self.devices) - self.promised)

    def mapped(self, change: Callable[[tuple[Device, ...]], tuple[Device, ...]]) -> Pool:
        """The pool with other devices; of a group, each node with other devices."""
        if not self.members:
            return replace(self, devices=change(self.devices))
        members = tuple(member.mapped(change) for member in self.members)
        return replace(self, members=members, devices=tuple(each for member in members for each in member.devices))


def joined_names(nodes: Sequence[str]) -> str:
    """A name for several nodes in a sentence."""
    shown, more = list(dict.fromkeys(nodes)), ""
    if len(shown) == 1:
        return f"{len(nodes)} x {shown[0]}"
    if len(shown) > MOST_NODES_NAMED:
        more = f" + {len(shown) - MOST_NODES_NAMED} more"
    return " + ".join(shown[:MOST_NODES_NAMED]) + more


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
