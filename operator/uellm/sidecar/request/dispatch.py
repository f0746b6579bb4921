"""Gives the scheduler core a clock and lets coroutines wait for their turn."""

from __future__ import annotations

import asyncio
from time import perf_counter

from uellm.sidecar.outcome import Outcome, Refusal
from uellm.sidecar.scheduling import (
    EngineState,
    Late,
    Lengths,
    Options,
    QueueFull,
    Scheduler,
    StepEstimate,
    StepModel,
    Ticket,
)
from uellm.sidecar.telemetry.metrics import DECISION_SECONDS_BUCKETS, Histogram

RETRY_QUEUE_S = 1
"""A queue drains within moments; a client that waits longer only leaves the engine idle."""

RETRY_ENGINE_S = 5
"""An engine that is away needs tens of seconds to load its model again."""

MOST_NEWS = 1000
"""Lines that the core leaves unread at most: 100 ms of a busy engine's, and 0.5 ms of reading."""


class Dispatcher:
    """One queue in front of one engine. Every wait ends: granted, refused, or its waiter is cancelled."""

    def __init__(self, options: Options, model: StepModel | None = None) -> None:
        """`model`: what the engine's steps take, until that is measured."""
        self._scheduler = Scheduler(options, StepEstimate(model))
        self.news: list[tuple[Ticket, int, float]] = []
        """Answers that grew: ticket, tokens so far, when. Every event of every stream puts a line here; the core reads
        them together, in their order, before it does anything else, so that its decisions are the same."""
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self.seconds = Histogram(
            "uellm_scheduler_decision_seconds", "Time of one round of decisions.", buckets=DECISION_SECONDS_BUCKETS
        )

    def catch_up(self) -> None:
        """Let the core read the news. It wakes nobody."""
        if not self.news:
            return
        news = self.news.copy()
        self.news.clear()
        on_tokens = self._scheduler.on_tokens
        for ticket, tokens, now_s in news:
            on_tokens(ticket, tokens, now_s)

    @property
    def _core(self) -> Scheduler:
        """The scheduler, which has read all news."""
        self.catch_up()
        return self._scheduler

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

    def reconfigure(self, options: Options, model: StepModel | None = None) -> None:
        """Take over a changed configuration. What was measured is kept, unless there is another model to correct."""
        if model is not None:
            self._core.assume(model)
        self._core.reconfigure(options, _now_s())
        self._pump()

    def figures(self) -> dict[str, float]:
        """The scheduler's own figures, for the metrics."""
        return self._core.figures()

    def on_engine_state(self, state: EngineState) -> None:
        """The engine came or went, or its figures are newer."""
        self._core.on_engine_state(state, _now_s())
        self._pump()

    async def turn(self, ticket: Ticket) -> None:
        """Wait until the request is to be sent. Raises Refusal. Whatever happens, the caller calls `finish` or
        `abort` in the end.

        A ticket that had its turn already, without a byte reaching the engine, waits for another one.
        """
        loop = asyncio.get_running_loop()
        try:
            self._core.submit(ticket, _now_s())
        except QueueFull:
            waiting = f"{self._core.queued} requests are waiting already"
            raise Refusal(Outcome.QUEUE_FULL, f"{waiting}; retry later", retry_after_s=RETRY_QUEUE_S) from None
        waiter = self._waiting[ticket] = loop.create_future()
        self._pump()
        try:
            await waiter
        finally:
            self._waiting.pop(ticket, None)

    def lengths(self, ticket: Ticket, lengths: Lengths) -> bool:
        """A better prediction came; whether in time. It makes room for nobody, so it wakes nobody."""
        return self._core.on_lengths(ticket, lengths, _now_s())

    def first_token(self, ticket: Ticket) -> None:
        """The first token of its answer came."""
        self._core.on_first_token(ticket, _now_s())
        self._pump()

    def finish(self, ticket: Ticket, tokens: int | None = None) -> None:
        """The answer is complete, with so many tokens if that is known; its place is free. Does nothing twice."""
        self._core.on_finish(ticket, _now_s(), tokens)
        self._pump()

    def abort(self, ticket: Ticket) -> None:
        """The request ended in any other way; its place is free. Does nothing to one that has ended."""
        self._core.on_abort(ticket, _now_s())
        self._pump()

    def close(self) -> None:
        """Stop the clock."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _pump(self) -> None:
        if not self._core.queued:
            self.close()
            return
        started_s = perf_counter()
        now_s = _now_s()
        late, granted = self._core.expire(now_s), self._core.dispatchable(now_s)
        self.seconds.observe(perf_counter() - started_s)
        for ticket, reason in late:
            self._settle(ticket, _too_late(reason))
        for ticket in granted:
            self._settle(ticket, None)
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
        self.close()
        if (at_s := self._core.next_event_s(_now_s())) is not None:
            self._alarm = asyncio.get_running_loop().call_at(at_s, self._pump)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _too_late(reason: Late) -> Refusal:
    if reason is Late.DEADLINE:
        return Refusal(Outcome.DEADLINE_PASSED, "its class's deadline passed while the request was waiting")
    if reason is Late.SHED:
        told = "too many requests wait for this one to be served within its class's targets; retry later"
        return Refusal(Outcome.SHED, told, retry_after_s=RETRY_QUEUE_S)
    return Refusal(
        Outcome.ENGINE_UNAVAILABLE,
        "the engine is away and did not come back while the request was waiting; retry later",
        retry_after_s=RETRY_ENGINE_S,
    )
