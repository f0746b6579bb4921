"""What the scheduler remembers follows the requests and tenants of the moment, however long it runs."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from weakref import WeakSet

import pytest

from helpers.scheduling import CHAT, STEP_MODEL, scheduler_before
from uellm.sidecar.scheduling import (
    POLICIES,
    EngineState,
    Lengths,
    Options,
    QueueFull,
    Scheduler,
    State,
    Targets,
    Ticket,
    alarms,
)
from uellm.sidecar.scheduling.best_effort import BestEffortQueue
from uellm.sidecar.scheduling.fairness import Fairness

READY = EngineState(ready=True, kv_tokens=384_000, max_num_batched_tokens=512)
URGENT = Targets("urgent", priority=10, ttft_s=2.0)
MOST_QUEUED = 1024


class Watched(Ticket):
    """A ticket of which a test sees whether anything still refers to it."""

    __slots__ = ("__weakref__",)


def arrivals(random: Random, until_s: float, per_s: float) -> Iterator[Watched]:
    """Requests of two classes."""
    now_s = 0.0
    while (now_s := now_s + random.expovariate(per_s)) < until_s:
        p50 = random.uniform(5, 60)
        yield Watched(random.choice((URGENT, CHAT)), now_s, random.randint(200, 900), Lengths(p50, 2 * p50))


def serve_next(core: Scheduler, now_s: float) -> float:
    """Let an engine of 5,000 prompt tokens a second serve what it is sent. Returns when it is done."""
    core.expire(now_s)
    for ticket in core.dispatchable(now_s):
        now_s += ticket.prompt_tokens / 5000
        core.on_first_token(ticket, now_s)
        core.on_finish(ticket, now_s, 1)
    return now_s


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_that_ended_are_forgotten_under_lasting_overload(policy):
    core = scheduler_before(READY, Options(policy, max_queued=MOST_QUEUED), STEP_MODEL)
    alive: WeakSet[Watched] = WeakSet()
    busy_until_s, most_alive = 0.0, 0
    for ticket in arrivals(Random(1), until_s=300.0, per_s=60.0):
        alive.add(ticket)
        while busy_until_s < ticket.arrival_s:
            busy_until_s = serve_next(core, busy_until_s + 0.02)
        try:
            core.submit(ticket, ticket.arrival_s)
        except QueueFull:
            core.expire(ticket.arrival_s)
        most_alive = max(most_alive, len(alive))
    assert most_alive < 5 * MOST_QUEUED


@pytest.mark.parametrize("tenants", [1, 100])
def test_fairness_remembers_no_more_of_tenants_that_send_one_request_after_the_other(tenants):
    fairness = Fairness()
    fairness.arrived("steady", 0.0)
    for number in range(20_000):
        tenant, now_s = f"tenant {number % tenants}", number * 0.01
        fairness.arrived(tenant, now_s)
        fairness.charge(tenant, 100, 10, now_s)
        fairness.left(tenant, now_s)
    assert len(fairness._least) < 100


def test_requests_that_may_be_on_time_again_leave_the_best_effort_queue_at_little_cost(monkeypatch):
    """They still wait, so nothing can be dropped for them. No try to is made at each of them."""
    drops = []
    heapify = alarms.heapq.heapify
    monkeypatch.setattr(alarms.heapq, "heapify", lambda heap: (drops.append(len(heap)), heapify(heap)))
    queue = BestEffortQueue()
    tickets = [Ticket(CHAT, 0.0) for _ in range(2000)]
    for number, ticket in enumerate(tickets):
        ticket.state, ticket.sequence = State.QUEUED, number
        queue.add(ticket, 1.0, 1.0, 100.0)
    for ticket in tickets:
        queue.remove(ticket)
    assert sum(drops) < 10 * len(tickets)
