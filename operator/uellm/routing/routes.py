"""The routes that the router's own is compared with: each picks one of the replicas that can take a request."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from random import Random
from typing import Protocol

from uellm.routing.books import ReplicaBooks
from uellm.routing.request import RoutedRequest

BOUND = 1.25
"""Most outstanding requests of a replica, as a multiple of the mean. Usual for consistent hashing with bounded loads
(Mirrokni, Thorup and Zadimoghaddam, 2018)."""


class Route(Protocol):
    """A way to pick a replica."""

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaBooks], now_s: float) -> ReplicaBooks:
        """One of `replicas`, which is not empty."""


class Uniform:
    """Any of them, as a Kubernetes Service does. `seed` makes it repeatable."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaBooks], now_s: float) -> ReplicaBooks:
        """One at random."""
        return self._random.choice(replicas)


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._last = ""

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaBooks], now_s: float) -> ReplicaBooks:
        """The next one by name after the last."""
        ordered = sorted(replicas, key=lambda replica: replica.name)
        chosen = next((replica for replica in ordered if replica.name > self._last), ordered[0])
        self._last = chosen.name
        return chosen


class FewestRequests:
    """The least number of outstanding requests, as proxies' `least_conn` or `LEAST_REQUEST` do."""

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaBooks], now_s: float) -> ReplicaBooks:
        """The one with the fewest; among equals the one that has had the fewest ever."""
        return min(replicas, key=lambda replica: (len(replica.outstanding), replica.sent, replica.name))


class PrefixBoundedLoad:
    """The longest known prefix among the replicas that do not have much more than the mean number of requests."""

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaBooks], now_s: float) -> ReplicaBooks:
        """The longest prefix within the bound; among equals the one with the fewest requests."""
        total = 1 + sum(len(replica.outstanding) for replica in replicas)
        most = ceil(BOUND * total / len(replicas))
        within = [replica for replica in replicas if len(replica.outstanding) < most]
        return min(
            within,
            key=lambda replica: (
                -replica.prefixes.tokens(request.prefix),
                len(replica.outstanding),
                replica.sent,
                replica.name,
            ),
        )
