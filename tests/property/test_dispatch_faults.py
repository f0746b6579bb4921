"""Whichever call of the scheduler raises, before or after its work: every wait ends and no bookkeeping remains."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.proxying.outcome import Refusal
from uellm.sidecar.request import dispatch
from uellm.sidecar.request.dispatch import Dispatcher
from uellm.sidecar.scheduling import EngineState, Lengths, Options, Scheduler, Shows, State, Targets, Ticket
from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.fairness import Fairness
from uellm.sidecar.scheduling.pacing import Pacing
from uellm.sidecar.scheduling.prefixes import CachedPrefixes
from uellm.sidecar.scheduling.sloodbs import SloOdbs
from uellm.sidecar.scheduling.waiting import Waiting

PARTS: dict[type, tuple[str, ...]] = {
    Scheduler: (
        *("submit", "dispatchable", "expire", "next_event_s", "on_first_token", "on_tokens", "on_finish", "on_abort"),
        *("on_lengths", "on_engine_state", "reconfigure", "restart", "figures"),
    ),
    EngineView: (
        "on_dispatch",
        "on_first_token",
        "on_unseen_end",
        "on_running",
        "on_tokens",
        "remove",
        "adopt",
        "on_engine_state",
        "pace",
        "backlog_tokens",
    ),
    Fairness: ("arrived", "left", "charge", "weight"),
    Pacing: ("refill", "spend", "opens_s"),
    CachedPrefixes: ("uncached_tokens", "record_dispatch", "on_engine_state"),
    Waiting: ("add", "remove", "has_room"),
    SloOdbs: ("add", "reposition", "head", "remove", "shed"),
}
CLASSES = (
    Targets("fast", priority=10, ttft_s=1.0, tpot_s=0.1),
    Targets("slow", e2e_s=60.0),
    Targets("strict", ttft_s=0.002, reject_late=True),
)
READY = EngineState(ready=True, kv_tokens=20_000, max_num_batched_tokens=512, running=2)


class Planted(Exception):
    """The exception that is raised."""


class Saboteur:
    """Counts calls of all parts while it is active. Calls with a number in `at` raise."""

    def __init__(self) -> None:
        self.plan(set(), after=False)

    def plan(self, at: set[int], *, after: bool) -> None:
        """Restart the count; `after`: the raising calls do their work first."""
        self.at, self.after, self.calls = at, after, 0

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            bad, self.calls = self.calls in self.at, self.calls + 1
            if bad and not self.after:
                raise Planted
            found = call(*args, **named)
            if bad:
                raise Planted
            return found

        return run


@pytest.fixture(scope="module")
def saboteur() -> Iterator[Saboteur]:
    found = Saboteur()
    with ExitStack() as patches:
        for part, names in PARTS.items():
            for name in names:
                patches.enter_context(mock.patch.object(part, name, found.wrapped(getattr(part, name))))
        patches.enter_context(mock.patch.object(dispatch, "PAUSE_S", 0.01))
        patches.enter_context(mock.patch.object(logging.getLogger("uellm.proxying"), "disabled", True))
        yield found


async def request(dispatcher: Dispatcher, number: int, kind: str) -> None:
    """One request as the proxy handles it, with one of the possible outcomes."""
    loop = asyncio.get_running_loop()
    ticket = Ticket(CLASSES[number % 3], loop.time(), 100, Lengths(20, 40), tenant="ab"[number % 2], sequences=1)
    ticket.shows = SEEN.get(kind, Shows.TOKENS)
    try:
        dispatcher.update_lengths(ticket, Lengths(10, 20))
        await dispatcher.turn(ticket)
        if kind == "returned":
            await dispatcher.turn(ticket)
        await asyncio.sleep(0)
        if kind in SEEN:
            dispatcher.on_engine_state(READY)
            dispatcher.finish(ticket, 1)
            return
        dispatcher.first_token(ticket)
        for tokens in range(2, 6):
            dispatcher.token_updates.append((ticket, tokens, loop.time()))
            await asyncio.sleep(0)
        if kind != "aborted":
            dispatcher.finish(ticket, 5)
    except Refusal:
        pass
    finally:
        dispatcher.abort(ticket)


KINDS = ["stream", "whole", "embedding", "returned", "aborted", "cancelled"]
SEEN = {"whole": Shows.END, "embedding": Shows.PROMPT}


async def scenario(kinds: list[str]) -> Dispatcher:
    dispatcher = Dispatcher(Options(max_in_flight=3, max_queued=100))
    dispatcher.on_engine_state(READY)
    tasks = [asyncio.create_task(request(dispatcher, number, kind)) for number, kind in enumerate(kinds)]
    await asyncio.sleep(0)
    for task, kind in zip(tasks, kinds, strict=True):
        if kind == "cancelled":
            task.cancel()
    dispatcher.on_engine_state(EngineState(ready=False))
    dispatcher.reconfigure(Options(max_in_flight=2, max_queued=100))
    dispatcher.on_engine_state(READY)
    dispatcher.figures()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    return dispatcher


def look(dispatcher: Dispatcher) -> None:
    """Check that all bookkeeping is empty."""
    core = dispatcher._core
    view = core._view
    assert (dispatcher.in_flight, dispatcher.queued, dispatcher.queued_by_class()) == (0, 0, {})
    assert (dispatcher._tickets, dispatcher._unscheduled, dispatcher._waiting) == ({}, {}, {})
    assert not core._fairness._active
    assert (view.unfilled_tokens, view.kv_tokens, view.prompt_tokens, view.got_tokens, view.decoding) == (0,) * 5
    assert view.promised_tokens == pytest.approx(0.0, abs=1e-6)
    assert not view.running
    assert (view.unseen.in_flight, view.unseen._unfilled) == (0, {})
    assert view._probe is None
    assert view.tightest_tpot_s is None
    assert (core._queued.bytes, core._queued.by_class) == (0, {})


async def serves(dispatcher: Dispatcher) -> None:
    """Check that it schedules the next request and measures its steps."""
    while dispatcher._pause is not None:  # noqa: ASYNC110 - the end of a pause has no event
        await asyncio.sleep(0.001)
    ticket = Ticket(CLASSES[0], asyncio.get_running_loop().time(), 100)
    await asyncio.wait_for(dispatcher.turn(ticket), 5)
    assert ticket.state is State.RUNNING
    observed = dispatcher._core.step.observed
    now_s = asyncio.get_running_loop().time()
    dispatcher.first_token(ticket)
    dispatcher.token_updates += [(ticket, tokens, now_s + 0.01 * tokens) for tokens in range(2, 6)]
    dispatcher.finish(ticket, 5)
    assert dispatcher._core.step.observed > observed


async def run(saboteur: Saboteur, kinds: list[str], at: set[int], *, after: bool) -> None:
    saboteur.plan(at, after=after)
    dispatcher = await scenario(kinds)
    saboteur.plan(set(), after=False)
    look(dispatcher)
    await serves(dispatcher)
    look(dispatcher)
    dispatcher.close()


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=8),
    at=st.sets(st.integers(0, 400), min_size=1, max_size=4),
    after=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_no_bookkeeping_remains_after_a_few_faults(saboteur, kinds, at, after):
    asyncio.run(run(saboteur, kinds, at, after=after))


def test_no_bookkeeping_remains_whichever_single_call_fails(saboteur):
    async def every() -> None:
        saboteur.plan(set(), after=False)
        (await scenario(KINDS)).close()
        number = saboteur.calls
        assert number > 100
        for at in range(number):
            for after in (False, True):
                await run(saboteur, KINDS, {at}, after=after)

    asyncio.run(every())
