"""The route `auto`: the replica where a request has the best outlook."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from uellm.routing.books import ReplicaBooks
from uellm.routing.outlook import outlook, reference_step
from uellm.routing.request import RoutedRequest

MISS_S = 30.0
"""Seconds of latency that one expected miss is worth."""

LATER_REQUESTS = 5.0
"""Requests that are delayed by a request's work besides those that are there: those that come before it ends."""


class BestOutlook:
    """The least expected misses and delay, of the request itself and of the others.

    The others count by their mean number over the replicas. By each replica's own number, long prompts would gather
    where few requests are, and short ones elsewhere, and the caches of the latter would serve nobody.
    """

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaBooks], now_s: float) -> ReplicaBooks:
        """The replica with the best outlook; among equals the one that has had the fewest requests."""
        reference = reference_step(replicas)
        outlooks = [outlook(request, replica, now_s, reference) for replica in replicas]
        delayed = LATER_REQUESTS + fmean(expected.others for expected in outlooks)
        costs_s = [MISS_S * expected.risk + expected.latency_s + delayed * expected.work_s for expected in outlooks]
        best = min(range(len(replicas)), key=lambda index: (costs_s[index], replicas[index].sent, replicas[index].name))
        return replicas[best]
