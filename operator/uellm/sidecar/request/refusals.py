"""Refusals of the queue: their messages and retry times."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from uellm.proxying.faults import Faults
from uellm.proxying.outcome import RETRY_ENGINE_S, RETRY_REPLICA_S, Refusal, RequestOutcome, spread_s
from uellm.sidecar.request.retry_after import UNKNOWN_S, RetryTimes
from uellm.sidecar.scheduling import Late, Targets, Ticket


class Refusals:
    """Retry times of one queue. A fault here never affects a request."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._retry_times = RetryTimes()
        self._priorities: dict[str, int] = {}

    def record_priority(self, targets: Targets) -> None:
        """Record the priority of a class whose request is about to be queued."""
        self._priorities[targets.name] = targets.priority

    def set_waiting(self, number: int, now_s: float) -> None:
        """Record how many requests wait."""
        try:
            self._retry_times.set_waiting(number > 0, now_s)
        except Exception as error:
            self._faults.count("retry_after", error)

    def record_completion(self, ticket: Ticket, in_flight: int, now_s: float) -> None:
        """Record that a request left the engine, as one of `in_flight`."""
        try:
            if ticket.dispatched_s is not None:
                self._retry_times.record_completion(in_flight, now_s - ticket.dispatched_s, now_s)
        except Exception as error:
            self._faults.count("retry_after", error)

    def retry_s(self, targets: Targets, waiting: Mapping[str, int], now_s: float, *, by_class: bool) -> float:
        """Seconds after which a refused request of these targets should come back.

        `waiting`: queued requests by class; `by_class`: whether those of a higher priority go first.
        """
        try:
            least = targets.priority
            ahead = sum(n for name, n in waiting.items() if not by_class or self._priorities.get(name, 0) >= least)
            return self._retry_times.retry_s(ahead, least if by_class else 0, now_s, random.random())
        except Exception as error:
            self._faults.count("retry_after", error)
            return spread_s(UNKNOWN_S)


def misdirected() -> Refusal:
    """The gateway means another service, whose pod had this pod's address before."""
    message = "the pod of the service is gone and another service has its address; retry later"
    return Refusal(RequestOutcome.ENGINE_UNAVAILABLE, message, retry_after_s=spread_s(RETRY_REPLICA_S))


def queue_full(waiting: int, retry_after_s: float) -> Refusal:
    """The queue is full."""
    message = f"{waiting} requests are waiting already; retry later"
    return Refusal(RequestOutcome.QUEUE_FULL, message, retry_after_s=retry_after_s)


def engine_away() -> Refusal:
    """The engine is not ready and did not come back in time."""
    message = "the engine is away and did not come back while the request was waiting; retry later"
    return Refusal(RequestOutcome.ENGINE_UNAVAILABLE, message, retry_after_s=spread_s(RETRY_ENGINE_S))


def too_late(reason: Late, retry_s: Callable[[], float]) -> Refusal:
    """A request may not wait any longer. `retry_s` returns its retry time."""
    if reason is Late.DEADLINE:
        message = "its class's deadline passed while the request was waiting"
        return Refusal(RequestOutcome.DEADLINE_PASSED, message, retry=False)
    if reason is Late.SHED:
        message = "too many requests wait for this one to be served within its class's targets; retry later"
        return Refusal(RequestOutcome.SHED, message, retry_after_s=retry_s())
    return engine_away()
