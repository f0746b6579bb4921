"""Guarantees of every policy, whatever its order."""

from __future__ import annotations

import pytest

from uellm.sidecar.scheduling import (
    ENGINE_WAIT_S,
    POLICIES,
    EngineState,
    Late,
    Lengths,
    Options,
    QueueFull,
    Scheduler,
    State,
    Targets,
    Ticket,
)

CLASSES = (
    Targets("chat", priority=1, ttft_s=1.0, tpot_s=0.06),
    Targets("task", e2e_s=10.0),
    Targets("strict", ttft_s=0.5, reject_late=True),
    Targets("none"),
)
READY = EngineState(ready=True, kv_tokens=100_000, max_num_batched_tokens=512)
STEP_S = 0.02

pytestmark = pytest.mark.parametrize("policy", sorted(POLICIES))


def tickets(count: int) -> list[Ticket]:
    return [
        Ticket(
            CLASSES[n % len(CLASSES)],
            n * 0.01,
            100 + 37 * n % 900,
            Lengths(20.0 + n % 50, 60.0 + n % 90),
            tenant=f"t{n % 3}",
        )
        for n in range(count)
    ]


class Engine:
    """Accepts everything, computes one prompt per step, and gives each request five tokens."""

    def __init__(self, core: Scheduler) -> None:
        self.core = core
        self.sent: list[Ticket] = []
        self.late: list[Ticket] = []
        self.now_s = 0.0
        core.on_engine_state(READY, 0.0)

    def turn(self) -> None:
        self.late += [ticket for ticket, _ in self.core.expire(self.now_s)]
        self.sent += self.core.dispatchable(self.now_s)
        self.now_s += STEP_S
        filled = False
        for ticket in [ticket for ticket in self.sent if ticket.state is State.RUNNING]:
            if ticket.first_token_s is None:
                if not filled:
                    self.core.on_first_token(ticket, self.now_s)
                filled = True
            elif ticket.tokens < 5:
                self.core.on_tokens(ticket, ticket.tokens + 1, self.now_s)
            else:
                self.core.on_finish(ticket, self.now_s, 5)


def test_every_request_is_handed_out_once_or_refused(policy):
    core = Scheduler(Options(policy, max_in_flight=8))
    engine = Engine(core)
    waiting = tickets(200)
    for ticket in waiting:
        core.submit(ticket, ticket.arrival_s)
        engine.now_s = max(engine.now_s, ticket.arrival_s)
        engine.turn()
    for _ in range(5000):
        if not core.queued and not core.in_flight:
            break
        engine.turn()
    assert len(engine.sent) == len(set(engine.sent))
    assert set(engine.sent) | set(engine.late) == set(waiting)
    assert not set(engine.sent) & set(engine.late)
    assert core.failure is None
    assert (core.queued, core.in_flight, core.queued_by_class()) == (0, 0, {})


def test_nothing_is_sent_to_an_unavailable_engine_and_waiting_for_it_ends(policy):
    core = Scheduler(Options(policy))
    (ticket,) = tickets(1)
    core.submit(ticket, 0.0)
    core.on_engine_state(EngineState(ready=False), 1.0)
    assert core.dispatchable(2.0) == []
    assert core.next_event_s(2.0) == 1.0 + ENGINE_WAIT_S
    assert core.expire(1.0 + ENGINE_WAIT_S) == [(ticket, Late.ENGINE)]


def test_an_idle_engine_gets_work_at_once(policy):
    core = Scheduler(Options(policy))
    core.on_engine_state(READY, 0.0)
    (ticket,) = tickets(1)
    core.submit(ticket, 0.0)
    assert core.dispatchable(0.0) == [ticket]


def test_a_request_that_never_reached_the_engine_goes_again(policy):
    core = Scheduler(Options(policy))
    core.on_engine_state(READY, 0.0)
    (ticket,) = tickets(1)
    core.submit(ticket, 0.0)
    assert core.dispatchable(0.0) == [ticket]
    core.submit(ticket, 0.1)
    assert (core.queued, core.in_flight) == (1, 0)
    assert core.dispatchable(0.1) == [ticket]


def test_an_abort_ends_a_request_wherever_it_is_and_twice_is_once(policy):
    core = Scheduler(Options(policy, max_in_flight=1))
    core.on_engine_state(READY, 0.0)
    first, second = tickets(2)
    core.submit(first, 0.0)
    running = core.dispatchable(0.0)
    core.submit(second, 0.01)
    for ticket in (*running, second, *running, second):
        core.on_abort(ticket, 0.02)
    assert (core.queued, core.in_flight) == (0, 0)
    assert core.dispatchable(0.03) == []


def test_a_request_that_its_class_rejects_late_leaves_at_its_deadline(policy):
    core = Scheduler(Options(policy))
    ticket = Ticket(CLASSES[2], 0.0, 100)
    core.submit(ticket, 0.0)
    assert core.expire(0.499) == []
    assert core.expire(0.5) == [(ticket, Late.DEADLINE)]


def test_queued_bytes_have_a_bound(policy):
    core = Scheduler(Options(policy, max_queued_bytes=100))
    core.submit(Ticket(CLASSES[3], 0.0, body_bytes=90), 0.0)
    with pytest.raises(QueueFull):
        core.submit(Ticket(CLASSES[3], 0.0, body_bytes=11), 0.0)
    core.submit(Ticket(CLASSES[3], 0.0, body_bytes=10), 0.0)
    assert core.figures()["queued_bytes"] == 100


def test_a_change_of_policy_in_flight_loses_nothing(policy):
    core = Scheduler(Options("FCFS", max_in_flight=4))
    engine = Engine(core)
    waiting = [ticket for ticket in tickets(60) if not ticket.targets.reject_late]
    for ticket in waiting:
        core.submit(ticket, ticket.arrival_s)
    engine.turn()
    core.reconfigure(Options(policy, max_in_flight=4), engine.now_s)
    for _ in range(2000):
        engine.turn()
    assert set(engine.sent) | set(engine.late) == set(waiting)
    assert len(engine.sent) + len(engine.late) == len(waiting)
    assert core.failure is None


def test_a_policy_that_fails_is_replaced_by_first_come_first_served(policy, monkeypatch):
    core = Scheduler(Options(policy))
    core.on_engine_state(READY, 0.0)
    waiting = tickets(5)
    for ticket in waiting:
        core.submit(ticket, ticket.arrival_s)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(core._order, "head", fail)
    assert core.dispatchable(0.1) == waiting
    assert isinstance(core.failure, ZeroDivisionError)
    assert core.figures()["failed_open"] == 1
