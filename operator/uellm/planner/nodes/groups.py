"""Groups of nodes that hold one replica together: the same number of equal GPUs on each, and consecutive stages.

A group is a pool whose `members` are its nodes, in the order of the stages. There is one for each kind of GPU and each
number of nodes, on the nodes with the most free GPUs. GPUs that share a layer are always in one node; only the hop from
a node's last stage to the next node's first crosses the network. So a kubelet may choose any of a node's GPUs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

from uellm.hardware import DRA, Device, Link
from uellm.planner import constants as c
from uellm.planner.cost.rates import flops_per_s, measured
from uellm.planner.nodes.network import NetworkRate, network_links, network_rate
from uellm.planner.nodes.pools import Pool, joined_names
from uellm.planner.nodes.tensor_groups import kind_of
from uellm.planner.request import NodeOffer, PlanRequest
from uellm.planner.shape import Shape


def groups_of(request: PlanRequest, pools: Sequence[Pool]) -> tuple[Pool, ...]:
    """The groups that these pools of nodes can form; none where pods claim their GPUs."""
    if request.allocation == DRA:
        return ()
    return tuple(
        _group(alike, count, rate)
        for alike in _alike(pools)
        for rate in [network_rate((pool.node, pool.peers) for pool in alike)]
        for count in range(2, min(len(alike), c.MOST_NODES_OF_A_REPLICA) + 1)
    )


def _alike(pools: Sequence[Pool]) -> Iterator[list[Pool]]:
    """Nodes that may share a replica: GPUs of one kind, about as fast. Those with the most free GPUs come first."""
    by_kind: dict[Hashable, list[Pool]] = {}
    for pool in pools:
        if pool.sure and _uniform(pool):
            device = pool.devices[0]
            key = kind_of(device), pool.resource_name, pool.simulated, all(map(measured, pool.devices))
            by_kind.setdefault(key, []).extend(_copies(pool))
    for _, nodes in sorted(by_kind.items(), key=lambda entry: entry[1][0].node):
        for level in _levels(nodes):
            yield sorted(level, key=lambda pool: (-pool.sure, pool.node))


def _uniform(pool: Pool) -> bool:
    """Whether any of its GPUs is as good as another; slices cannot be combined."""
    return len({kind_of(device) for device in pool.devices}) == 1 and not any(device.mig for device in pool.devices)


def _levels(nodes: Sequence[Pool]) -> Iterator[list[Pool]]:
    """The nodes by speed: each level's are within the noise of measurements of its fastest."""
    level: list[Pool] = []
    for pool in sorted(nodes, key=lambda pool: (*(-rate for rate in _speed(pool)), pool.node)):
        if level and any(
            slow < fast * (1 - c.CORRECTED_RATE_TOLERANCE)
            for slow, fast in zip(_speed(pool), _speed(level[0]), strict=True)
        ):
            yield level
            level = []
        level.append(pool)
    if level:
        yield level


def _speed(pool: Pool) -> tuple[float, float]:
    """Of its slowest GPU."""
    return (
        min(device.memory_bytes_per_s or 0.0 for device in pool.devices),
        min(flops_per_s(device) or 0.0 for device in pool.devices),
    )


def _copies(pool: Pool) -> Iterator[Pool]:
    """As many of a node that would join as a group may have."""
    yield pool
    for number in range(1, min(pool.copies, c.MOST_NODES_OF_A_REPLICA)):
        yield replace(pool, devices=_copied_devices(pool.devices, number), links=_copied_links(pool.links, number))


def copied_offer(offer: NodeOffer, number: int) -> NodeOffer:
    """Another node of a class, which joins beside the first."""
    node = offer.node
    devices, links = _copied_devices(node.devices, number), _copied_links(node.links, number)
    another = replace(node, name=_copied(node.name, number), devices=devices, links=links)
    return replace(offer, node=another, free=tuple(_copied(uuid, number) for uuid in offer.free))


def _copied_devices(devices: Sequence[Device], number: int) -> tuple[Device, ...]:
    return tuple(replace(device, uuid=_copied(device.uuid, number)) for device in devices)


def _copied_links(links: Sequence[Link], number: int) -> tuple[Link, ...]:
    return tuple(replace(link, a=_copied(link.a, number), b=_copied(link.b, number)) for link in links)


def _copied(name: str, number: int) -> str:
    return f"{name} #{number + 1}"


def _group(alike: Sequence[Pool], count: int, rate: NetworkRate) -> Pool:
    members = tuple(alike[:count])
    first = members[0]
    inside = tuple(link for pool in members for link in pool.links)
    return Pool(
        node=joined_names([pool.node for pool in members]),
        resource_name=first.resource_name,
        devices=tuple(device for pool in members for device in pool.devices),
        links=(*inside, *network_links([pool.devices for pool in members], rate)),
        simulated=first.simulated,
        copies=first.copies,
        members=members,
        kin=tuple(alike),
        network=rate,
    )


def takes(pool: Pool, shape: Shape) -> bool:
    """Whether a shape is looked at on a pool: on the fewest nodes that have its GPUs, each with whole stages."""
    count = len(pool.members)
    if not count:
        return True
    return (
        shape.gpus <= c.MOST_GPUS_OF_A_REPLICA
        and _has_stages(pool.kin, shape, count)
        and not any(_has_stages(pool.kin, shape, fewer) for fewer in range(1, count))
    )


def _has_stages(alike: Sequence[Pool], shape: Shape, count: int) -> bool:
    return shape.pipeline % count == 0 and alike[count - 1].sure >= shape.gpus // count


def room(pool: Pool, gpus: int) -> int:
    """The number of replicas with this many GPUs each that fit now; those of a group on as many nodes as it has."""
    count = len(pool.members)
    if not count:
        return pool.sure // gpus * pool.copies
    if pool.copies > 1:
        return pool.copies if pool.sure >= gpus else 0
    seats = [each.sure // (gpus // count) for each in pool.kin]
    most = sum(seats) // count
    while most and sum(min(each, most) for each in seats) < most * count:
        most -= 1
    return most


def node_names(pool: Pool, gpus: int) -> tuple[str, ...]:
    """The nodes that may hold a replica, or a part of one in a group; those that it was evaluated on come first."""
    if not pool.members:
        return (pool.node,)
    each = gpus // len(pool.members)
    return tuple(dict.fromkeys(kin.node for kin in pool.kin if kin.sure >= each))


def devices_for(pool: Pool, shape: Shape) -> tuple[Device, ...]:
    """The devices that may be a replica's: of a group as many of each node as a shape takes, else all."""
    if not pool.members:
        return pool.devices
    each = shape.gpus // len(pool.members)
    return tuple(device for member in pool.members for device in member.devices[:each])
