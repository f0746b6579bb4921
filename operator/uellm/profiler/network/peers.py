"""Who measures the network to whom: each profiler to the few that follow it in the order of the nodes' names. Pure.

So a cluster of n nodes costs n times a few measurements, and the nodes of a pool, whose names are alike, measure each
other. Two to four nodes measure every pair.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MOST_ASKED = 3
"""Nodes that one node measures."""


class ProfilerPeer(NamedTuple):
    """A node with a profiler."""

    node: str
    address: str
    """At which its pod is asked."""
    addresses: frozenset[str]
    """From which its pod asks."""


def peers_of(pods: Iterable[Mapping[str, Any]]) -> tuple[ProfilerPeer, ...]:
    """The nodes of the profilers' pods that have an address and are not about to end, by name."""
    found: dict[str, ProfilerPeer] = {}
    for pod in pods:
        node, status = (pod.get("spec") or {}).get("nodeName"), pod.get("status") or {}
        addresses = [plain(entry["ip"]) for entry in status.get("podIPs") or () if entry.get("ip")]
        running = status.get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        if node and addresses and running:
            found[node] = ProfilerPeer(node, addresses[0], frozenset(addresses))
    return tuple(peer for _, peer in sorted(found.items()))


def to_ask(peers: Iterable[ProfilerPeer], own: str) -> tuple[ProfilerPeer, ...]:
    """Those that a node is to measure, where `own` is its name."""
    others = [peer for peer in peers if peer.node != own]
    ring = [peer for peer in others if peer.node > own] + [peer for peer in others if peer.node < own]
    return tuple(ring[:MOST_ASKED])


def callers(peers: Iterable[ProfilerPeer], own: str) -> frozenset[str]:
    """The addresses from which others may ask a node."""
    return frozenset(address for peer in peers if peer.node != own for address in peer.addresses)


def plain(address: str) -> str:
    """An IP address in the one form in which it is compared.

    >>> plain("::ffff:10.0.0.7"), plain("FD00:0::1")
    ('10.0.0.7', 'fd00::1')
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)
