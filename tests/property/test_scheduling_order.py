"""SLO-ODBS makes the same decisions as an implementation with plain lists; its trees and heaps are only faster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.sidecar.scheduling import EngineState, Lengths, Options, Scheduler, Targets, Ticket, sloodbs
from uellm.sidecar.scheduling.best_effort import AGED_S, AGED_SHARE, SHED_AFTER_S
from uellm.sidecar.scheduling.on_time_set import LEAF_S, LEAVES, PRIORITY_RANK, OnTimeSet, Place

CLASSES = (
    Targets("chat", ttft_s=0.5, tpot_s=0.06),
    Targets("task", priority=1, e2e_s=5.0),
    Targets("report", ttft_s=2.0, e2e_s=60.0),
    Targets("any"),
    Targets("far", e2e_s=3600.0),
    Targets("strict", ttft_s=1.0, reject_late=True),
)


class PlainOnTimeSet:
    """The on-time set as a list that is scanned from the start every time."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self._stamp = 0
        self._places: dict[Ticket, tuple[int, float, float, float]] = {}

    @property
    def members(self) -> int:
        return len(self._places)

    def add(self, ticket: Ticket, deadline_s: float, work_s: float, value: float) -> None:
        self._stamp += 1
        ticket.stamp = self._stamp
        leaf = min(max(int((deadline_s - self.start_s) / LEAF_S), 0), LEAVES - 1)
        self._places[ticket] = (leaf, deadline_s, work_s, value)

    def add_all(self, requests: Iterable[tuple[Ticket, Place]]) -> None:
        for ticket, place in requests:
            self.add(ticket, *place)

    def remove(self, ticket: Ticket) -> None:
        ticket.stamp = 0
        del self._places[ticket]

    def tickets(self) -> Iterator[Ticket]:
        return iter(self._places)

    def first(self) -> Ticket | None:
        def rank(ticket: Ticket) -> tuple[float, int]:
            return self._places[ticket][1], ticket.sequence - ticket.targets.priority * PRIORITY_RANK

        return min(self._places, key=rank, default=None)

    def slack_s(self, ready_s: float) -> float:
        return -max((late_s + ready_s for _, late_s in self._late()), default=-inf)

    def give_way(self, ready_s: float) -> Ticket | None:
        for leaf, late_s in self._late():
            if late_s + ready_s > 0.0:
                before = [ticket for ticket, place in self._places.items() if place[0] <= leaf]
                return min(before, key=lambda ticket: (self._places[ticket][3], ticket.sequence))
        return None

    def _late(self) -> Iterator[tuple[int, float]]:
        done_s = 0.0
        for leaf in sorted({place[0] for place in self._places.values()}):
            done_s += sum(place[2] for place in self._places.values() if place[0] == leaf)
            yield leaf, done_s - (self.start_s + leaf * LEAF_S)


class PlainBestEffortQueue:
    """The best-effort queue as a list."""

    def __init__(self) -> None:
        self._waiting: dict[Ticket, tuple[float, float]] = {}
        self._alarms: list[tuple[float, Ticket]] = []
        self._lost: dict[Ticket, float] = {}
        self._credit_s = 0.0
        self._stamp = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ticket: Ticket, work_s: float, key: float, hopeless_s: float) -> None:
        self._stamp -= 1
        ticket.stamp = self._stamp
        self._waiting[ticket] = (key, work_s)
        self._alarms.append((hopeless_s, ticket))

    def remove(self, ticket: Ticket) -> None:
        ticket.stamp = 0
        del self._waiting[ticket]
        self._lost.pop(ticket, None)

    def first(self, now_s: float, *, ageing: bool) -> Ticket | None:
        aged = self._aged(now_s) if ageing else None
        return aged or min(self._waiting, key=lambda ticket: (self._waiting[ticket][0], ticket.sequence), default=None)

    def due(self, now_s: float) -> Ticket | None:
        aged = self._aged(now_s)
        return aged if aged is not None and self._waiting[aged][1] <= self._credit_s else None

    def record_dispatch(self, ticket: Ticket, work_s: float, now_s: float) -> None:
        aged = self._aged(now_s)
        if aged is None:
            self._credit_s = 0.0
        elif ticket is aged:
            self._credit_s = max(0.0, self._credit_s - work_s)
        else:
            self._credit_s += AGED_SHARE * work_s

    def mark_hopeless(self, now_s: float) -> None:
        for _, ticket in [alarm for alarm in self._alarms if alarm[0] <= now_s]:
            if ticket in self._waiting:
                self._lost.setdefault(ticket, self._waiting[ticket][1])
        self._alarms = [alarm for alarm in self._alarms if alarm[0] > now_s]

    def shed(self) -> Ticket | None:
        if sum(self._lost.values()) <= SHED_AFTER_S:
            return None
        return max(self._lost, key=lambda ticket: (self._lost[ticket], -ticket.sequence))

    def _aged(self, now_s: float) -> Ticket | None:
        oldest = min(self._waiting, key=lambda ticket: (ticket.arrival_s, ticket.sequence), default=None)
        return oldest if oldest is not None and now_s - oldest.arrival_s >= AGED_S else None


def decisions(seed: int) -> list[tuple[int | str, ...]]:
    """The decisions of a scheduler under random events drawn with the seed."""
    random = Random(seed)
    options = Options(fairness=random.random() < 0.7, tpot_guard=random.random() < 0.7, shedding=random.random() < 0.7)
    core = Scheduler(options)
    core.on_engine_state(EngineState(ready=True, max_num_batched_tokens=random.choice((256, 2048))), 0.0)
    waiting: list[Ticket] = []
    running: list[Ticket] = []
    done: list[tuple[int | str, ...]] = []
    now_s, mean_s = 0.0, random.choice((0.005, 0.05, 0.3))
    for _ in range(random.choice((60, 300))):
        now_s += random.expovariate(1.0 / mean_s)
        event = random.random()
        if event < 0.5 or not running:
            ticket = _arrival(random, now_s)
            core.submit(ticket, now_s)
            waiting.append(ticket)
        elif event < 0.85:
            ticket = running[random.randrange(len(running))]
            if ticket.first_token_s is None:
                core.on_first_token(ticket, now_s)
            elif random.random() < 0.5:
                core.on_tokens(ticket, ticket.tokens + random.randrange(1, 40), now_s)
            else:
                running.remove(ticket)
                core.on_finish(ticket, now_s)
        elif event < 0.9:
            core.on_abort(random.choice(waiting), now_s)
        elif event < 0.95:
            core.on_lengths(random.choice(waiting), _lengths(random), now_s)
        else:
            now_s += random.choice((1.0, 30.0, 90.0))
        done += [(why.value, ticket.sequence) for ticket, why in core.expire(now_s)]
        sent = core.dispatchable(now_s)
        running += sent
        done += [("sent", *(ticket.sequence for ticket in sent)), (*core.figures().values(),)]
        assert core.failure is None
    return done


def _arrival(random: Random, now_s: float) -> Ticket:
    tenant, prompt = f"t{random.randrange(4)}", random.randrange(1, 4000)
    return Ticket(random.choice(CLASSES), now_s, prompt, _lengths(random), tenant=tenant)


def _lengths(random: Random) -> Lengths:
    median = random.lognormvariate(5, 1)
    return Lengths(median, median * random.choice((1.0, 1.5, 3.0)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_every_decision_is_the_same_as_with_plain_lists(seed):
    fast = decisions(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sloodbs, "OnTimeSet", PlainOnTimeSet)
        patch.setattr(sloodbs, "BestEffortQueue", PlainBestEffortQueue)
        plain = decisions(seed)
    assert fast == plain


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-1.0, 200.0), st.floats(0.0, 3.0), st.floats(0.01, 9.0)), max_size=40))
def test_requests_that_are_added_at_once_make_the_same_plan(places):
    singly, at_once = OnTimeSet(0.0), OnTimeSet(0.0)
    tickets = [(Ticket(CLASSES[0], 0.0), Ticket(CLASSES[0], 0.0)) for _ in places]
    for number, ((one, other), place) in enumerate(zip(tickets, places, strict=True)):
        one.sequence = other.sequence = number
        singly.add(one, *place)
    at_once.add_all((other, place) for (_, other), place in zip(tickets, places, strict=True))
    assert at_once.members == singly.members
    while singly.members:
        assert at_once.slack_s(0.5) == singly.slack_s(0.5)
        out, other = singly.give_way(0.5) or singly.first(), at_once.give_way(0.5) or at_once.first()
        assert out is not None
        assert other is not None
        assert other.sequence == out.sequence
        singly.remove(out)
        at_once.remove(other)
    assert at_once.first() is None


def test_requests_that_give_way_again_and_again_leave_nothing_behind():
    core = Scheduler(Options(max_queued=10**6, shedding=False))
    core.on_engine_state(EngineState(ready=True), 0.0)
    waiting = [Ticket(CLASSES[1], 0.0, 8000, Lengths(100.0, 150.0)) for _ in range(50)]
    for ticket in waiting:
        core.submit(ticket, 0.0)
    tail = core._order._best_effort
    for number in range(5000):
        core.on_lengths(waiting[number % 50], Lengths(90.0 + number % 7, 150.0), 0.001 * (number % 9))
    for ticket in waiting[:10]:
        core.on_abort(ticket, 0.1)
    assert len(tail._hopeless_at) <= 64 + 4 * 50
    assert sum(len(heap) for heap in (tail._shortest, tail._oldest)) <= 2 * (64 + 4 * 50)
