"""The route `auto`: the replica where a request has the best outlook."""

from __future__ import annotations

from collections.abc import Sequence

from uellm.routing.books import Replica
from uellm.routing.outlook import Outlook, outlook
from uellm.routing.request import RoutedRequest

MISS_S = 30.0
"""Seconds of latency, of all requests together, that one miss is worth."""


class Predicted:
    """Fewest expected misses, and least latency where none is expected."""

    def choose(self, request: RoutedRequest, replicas: Sequence[Replica], now_s: float) -> Replica:
        """The replica with the best outlook; among equals the one that has had the fewest requests."""
        return min(
            replicas, key=lambda replica: (_cost_s(outlook(request, replica, now_s)), replica.sent, replica.name)
        )


def _cost_s(expected: Outlook) -> float:
    return MISS_S * expected.risk + expected.latency_s
