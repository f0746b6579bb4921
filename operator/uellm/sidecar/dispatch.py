"""Gives the scheduler core a clock and lets coroutines wait for their turn."""

from __future__ import annotations

import asyncio

from uellm.sidecar.core import Late, Limits, QueueFull, Scheduler, Ticket
from uellm.sidecar.outcome import Outcome, Refusal

RETRY_QUEUE_S = 1
"""A queue drains within moments; a client that waits longer only leaves the engine idle."""

RETRY_ENGINE_S = 5
"""An engine that is away needs tens of seconds to load its model again."""


class Dispatcher:
    """One queue in front of one engine. Every wait ends: granted, refused, or its waiter is cancelled."""

    def __init__(self, policy: str, limits: Limits) -> None:
        self._core = Scheduler(policy, limits)
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def queued(self) -> int:
        """Requests that wait here."""
        return self._core.queued

    @property
    def in_flight(self) -> int:
        """Requests that the engine has."""
        return self._core.in_flight

    def queued_by_class(self) -> dict[str, int]:
        """Waiting requests of each class that has any."""
        return self._core.queued_by_class()

    def reconfigure(self, policy: str, limits: Limits) -> None:
        """Take over a changed configuration."""
        self._core.reconfigure(policy, limits)
        self._pump()

    def on_engine_state(self, ready: bool) -> None:
        """The engine came or went."""
        self._core.on_engine_state(ready, _now_s())
        self._pump()

    async def turn(self, ticket: Ticket) -> None:
        """Wait until the request is to be sent. Raises Refusal. Whatever happens, the caller calls `finish` in the end.

        A ticket that had its turn already, without a byte reaching the engine, waits for another one.
        """
        loop = asyncio.get_running_loop()
        try:
            self._core.submit(ticket)
        except QueueFull:
            waiting = f"{self._core.queued} requests are waiting already"
            raise Refusal(Outcome.QUEUE_FULL, f"{waiting}; retry later", retry_after_s=RETRY_QUEUE_S) from None
        waiter = self._waiting[ticket] = loop.create_future()
        self._pump()
        try:
            await waiter
        finally:
            self._waiting.pop(ticket, None)

    def finish(self, ticket: Ticket) -> None:
        """The request ended, whichever way; its place is free."""
        self._core.finish(ticket)
        self._pump()

    def close(self) -> None:
        """Stop the clock."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _pump(self) -> None:
        for ticket, reason in self._core.expire(_now_s()):
            self._settle(ticket, _too_late(reason))
        while (granted := self._core.next()) is not None:
            self._settle(granted, None)
        self._set_alarm()

    def _settle(self, ticket: Ticket, refusal: Refusal | None) -> None:
        waiter = self._waiting.pop(ticket, None)
        if waiter is None or waiter.done():
            return  # its client has just left, and its handler is on the way to `finish`
        if refusal is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(refusal)

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if (at_s := self._core.next_expiry_s()) is not None:
            self._alarm = asyncio.get_running_loop().call_at(at_s, self._pump)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _too_late(reason: Late) -> Refusal:
    if reason is Late.DEADLINE:
        return Refusal(Outcome.DEADLINE_PASSED, "its class's deadline passed while the request was waiting")
    return Refusal(
        Outcome.ENGINE_UNAVAILABLE,
        "the engine is away and did not come back while the request was waiting; retry later",
        retry_after_s=RETRY_ENGINE_S,
    )
