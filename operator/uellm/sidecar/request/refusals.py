"""Why the queue refuses a request, and when that one is to come back."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from uellm.sidecar.outcome import RETRY_ENGINE_S, Outcome, Refusal, spread_s
from uellm.sidecar.request.retry_after import UNKNOWN_S, Room
from uellm.sidecar.scheduling import Late, Targets, Ticket
from uellm.sidecar.telemetry.faults import Faults


class Refusals:
    """Of one queue."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._room = Room()
        self._priorities: dict[str, int] = {}

    def queued(self, targets: Targets) -> None:
        """A request of these targets is to be queued."""
        self._priorities[targets.name] = targets.priority

    def waiting(self, number: int, now_s: float) -> None:
        """So many requests wait."""
        with self._faults.spared("room"):
            self._room.waits(number > 0, now_s)

    def completed(self, ticket: Ticket, in_flight: int, now_s: float) -> None:
        """A request left the engine, which had so many with it."""
        with self._faults.spared("room"):
            if ticket.dispatched_s is not None:
                self._room.completed(in_flight, now_s - ticket.dispatched_s, now_s)

    def retry_s(self, targets: Targets, waiting: Mapping[str, int], now_s: float, *, by_class: bool) -> float:
        """When a request of these targets is to come back, in seconds from now.

        `waiting`: requests by class; `by_class`: those of a higher priority go first.
        """
        try:
            least = targets.priority
            ahead = sum(n for name, n in waiting.items() if not by_class or self._priorities.get(name, 0) >= least)
            return self._room.retry_s(ahead, least if by_class else 0, now_s, random.random())
        except Exception as error:
            self._faults.note("room", error)
            return spread_s(UNKNOWN_S)


def queue_full(waiting: int, retry_after_s: float) -> Refusal:
    """So many wait already."""
    told = f"{waiting} requests are waiting already; retry later"
    return Refusal(Outcome.QUEUE_FULL, told, retry_after_s=retry_after_s)


def engine_away() -> Refusal:
    """A request waited long enough for an engine."""
    told = "the engine is away and did not come back while the request was waiting; retry later"
    return Refusal(Outcome.ENGINE_UNAVAILABLE, told, retry_after_s=spread_s(RETRY_ENGINE_S))


def too_late(reason: Late, retry_s: Callable[[], float]) -> Refusal:
    """A request has waited for as long as it may. `retry_s` tells when there will be room for it."""
    if reason is Late.DEADLINE:
        told = "its class's deadline passed while the request was waiting"
        return Refusal(Outcome.DEADLINE_PASSED, told, retry=False)
    if reason is Late.SHED:
        told = "too many requests wait for this one to be served within its class's targets; retry later"
        return Refusal(Outcome.SHED, told, retry_after_s=retry_s())
    return engine_away()
