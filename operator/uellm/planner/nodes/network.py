"""The network between the nodes of a replica: as it was measured, else as it is assumed.

Which nodes a replica gets is not known when it is planned, and not every pair of nodes is measured. So the slowest of
the measured pairs among all nodes that may hold it counts for each of its hops.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from uellm.hardware import NETWORK, Device, Link, NetworkLink
from uellm.planner import constants as c


@dataclass(frozen=True, slots=True)
class NetworkRate:
    """What a plan counts with between any two of its nodes."""

    bytes_per_s: float
    latency_s: float
    pairs: int = 0
    """Pairs of nodes that were measured; 0: the figures are assumed."""


ASSUMED_NETWORK = NetworkRate(c.NETWORK_BYTES_PER_S, c.NETWORK_LATENCY_S)


def network_rate(nodes: Iterable[tuple[str, Sequence[NetworkLink]]]) -> NetworkRate:
    """The slowest that was measured between two of these nodes, given by name with what is measured from each."""
    from_node = dict(nodes)
    found = [(frozenset((name, link.node)), link) for name, links in from_node.items() for link in links]
    known = [(pair, link) for pair, link in found if len(pair & from_node.keys()) == 2]
    if not known:
        return ASSUMED_NETWORK
    return NetworkRate(
        min(link.bytes_per_s for _, link in known),
        max(link.latency_s for _, link in known),
        len({pair for pair, _ in known}),
    )


def network_links(nodes: Sequence[Sequence[Device]], rate: NetworkRate) -> tuple[Link, ...]:
    """The links from each node's GPUs to those of the next node."""
    return tuple(
        Link(a.uuid, b.uuid, NETWORK, rate.bytes_per_s, rate.latency_s)
        for one, other in pairwise(nodes)
        for a in one
        for b in other
    )
