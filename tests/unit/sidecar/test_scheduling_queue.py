"""Order, admission and the ways in which waiting ends, with a simulated clock."""

from __future__ import annotations

import pytest

import helpers.scheduling
from helpers.scheduling import scheduler_before
from uellm.sidecar.scheduling import (
    ENGINE_WAIT_S,
    FAR_DEADLINE_S,
    EngineState,
    Late,
    Options,
    QueueFull,
    Scheduler,
    State,
    Targets,
    Ticket,
)

FAST = Targets("fast", priority=10, ttft_s=1.0)
SLOW = Targets("slow", e2e_s=60.0)
NONE = Targets("none")
READY, AWAY = EngineState(ready=True), EngineState(ready=False)
STRICT = Targets("strict", ttft_s=2.0, reject_late=True)


def scheduler(policy: str = "EDF", **limits: int) -> Scheduler:
    return scheduler_before(READY, Options(policy, **limits))


def submitted(core: Scheduler, *arrivals: tuple[Targets, float]) -> list[Ticket]:
    return helpers.scheduling.submitted(core, *(Ticket(targets, arrival_s) for targets, arrival_s in arrivals))


def handed_out(core: Scheduler, now_s: float = 0.0) -> list[Ticket]:
    """The requests sent to an engine that is free for the next one as soon as it has the previous one."""
    out = core.dispatchable(now_s)
    for ticket in out:
        core.on_first_token(ticket, now_s)
        out += core.dispatchable(now_s)
    return out


def test_the_earliest_deadline_goes_first():
    core = scheduler()
    slow, far, fast = submitted(core, (SLOW, 0.0), (NONE, 0.0), (FAST, 5.0))
    assert handed_out(core) == [fast, slow, far]


def test_first_come_first_served_ignores_deadlines():
    core = scheduler("FCFS")
    tickets = submitted(core, (SLOW, 0.0), (NONE, 0.0), (FAST, 5.0))
    assert handed_out(core) == tickets


def test_among_equal_deadlines_priority_decides_and_then_arrival():
    core = scheduler()
    first, second, urgent = submitted(core, (NONE, 0.0), (NONE, 0.0), (Targets("urgent", priority=1), 0.0))
    assert handed_out(core) == [urgent, first, second]


def test_the_first_token_decides_where_a_class_has_both_targets():
    core = scheduler()
    (both,) = submitted(core, (Targets("both", ttft_s=1.0, e2e_s=9.0), 10.0))
    assert both.deadline_s == 11.0


def test_waiting_moves_a_request_without_targets_to_the_front():
    core = scheduler()
    patient, late = submitted(core, (NONE, 0.0), (FAST, FAR_DEADLINE_S + 1.0))
    assert handed_out(core) == [patient, late]


def test_at_most_as_many_requests_are_in_the_engine_as_the_gate_admits():
    core = scheduler(max_in_flight=2)
    tickets = submitted(core, *[(FAST, float(n)) for n in range(3)])
    assert handed_out(core) == tickets[:2]
    assert (core.in_flight, core.queued) == (2, 1)
    core.on_finish(tickets[0], 0.0)
    assert handed_out(core) == tickets[2:]


def test_nothing_is_sent_while_the_engine_is_unavailable():
    core = Scheduler(Options("EDF"))
    (ticket,) = submitted(core, (FAST, 0.0))
    assert core.dispatchable(0.0) == []
    core.on_engine_state(READY, 1.0)
    assert core.dispatchable(0.0) == [ticket]


def test_a_full_queue_takes_nothing_more_and_has_room_again_when_one_leaves():
    core = scheduler(max_queued=1)
    (queued,) = submitted(core, (FAST, 0.0))
    with pytest.raises(QueueFull):
        core.submit(Ticket(FAST, 0.0), 0.0)
    core.on_finish(queued, 0.0)
    core.submit(Ticket(FAST, 0.0), 0.0)


def test_a_dispatch_that_failed_returns_to_its_place_even_into_a_full_queue():
    core = scheduler(max_queued=1, max_in_flight=1)
    (first,) = submitted(core, (FAST, 0.0))
    assert core.dispatchable(0.0) == [first]
    submitted(core, (FAST, 1.0))
    core.submit(first, 1.0)
    assert core.dispatchable(0.0) == [first]


def test_a_ticket_is_queued_once():
    core = scheduler()
    (ticket,) = submitted(core, (FAST, 0.0))
    with pytest.raises(ValueError, match="queued"):
        core.submit(ticket, ticket.arrival_s)
    core.on_finish(ticket, 0.0)
    with pytest.raises(ValueError, match="done"):
        core.submit(ticket, ticket.arrival_s)


def test_a_client_that_leaves_frees_its_place_wherever_it_was():
    core = scheduler(max_in_flight=1)
    running, queued = submitted(core, (FAST, 0.0), (FAST, 1.0))
    assert core.dispatchable(0.0) == [running]
    for ticket in (queued, running, running):
        core.on_finish(ticket, 0.0)
    assert (core.in_flight, core.queued, core.dispatchable(2.0)) == (0, 0, [])


def test_only_a_class_that_says_reject_loses_requests_at_the_deadline():
    core = scheduler(max_in_flight=1)
    strict, fast = submitted(core, (STRICT, 0.0), (FAST, 0.0))
    assert core.next_event_s(0.0) == 2.0
    assert core.expire(1.999) == []
    assert core.expire(2.0) == [(strict, Late.DEADLINE)]
    assert strict.state is State.DONE
    assert handed_out(core) == [fast]


def test_the_far_deadline_of_a_class_without_targets_rejects_nothing():
    core = scheduler()
    submitted(core, (Targets("none", reject_late=True), 0.0))
    assert core.next_event_s(0.0) is None
    assert core.expire(10 * FAR_DEADLINE_S) == []


def test_a_sent_request_does_not_expire():
    core = scheduler()
    submitted(core, (STRICT, 0.0))
    assert core.dispatchable(0.0)
    assert core.next_event_s(0.0) is None
    assert core.expire(100.0) == []


def test_the_wait_for_an_engine_counts_from_its_leaving_or_the_arrival():
    core = scheduler()
    before, after = submitted(core, (SLOW, 0.0), (SLOW, 15.0))
    core.on_engine_state(AWAY, 10.0)
    core.on_engine_state(AWAY, 12.0)
    assert core.next_event_s(0.0) == 10.0 + ENGINE_WAIT_S
    assert core.expire(10.0 + ENGINE_WAIT_S) == [(before, Late.ENGINE)]
    assert core.next_event_s(0.0) == 15.0 + ENGINE_WAIT_S
    core.on_engine_state(READY, 20.0)
    assert core.dispatchable(0.0) == [after]


def test_a_changed_policy_reorders_the_queue_and_loses_nothing():
    core = scheduler()
    slow, fast = submitted(core, (SLOW, 0.0), (FAST, 1.0))
    core.reconfigure(Options("FCFS", max_queued=1), 2.0)
    with pytest.raises(QueueFull):
        core.submit(Ticket(FAST, 2.0), 2.0)
    assert handed_out(core) == [slow, fast]


def test_depths_are_reported_by_class():
    core = scheduler()
    submitted(core, (SLOW, 0.0), (FAST, 0.0), (FAST, 0.0))
    assert core.queued_by_class() == {"slow": 1, "fast": 2}


def test_memory_follows_the_requests_that_wait_not_those_that_left():
    core = scheduler()
    submitted(core, (SLOW, 0.0))
    for n in range(10_000):
        (ticket,) = submitted(core, (STRICT, float(n)))
        core.on_finish(ticket, 0.0)
    assert len(core._order) + len(core._queued.arrivals) + len(core._queued.deadlines) < 200


def test_the_timer_for_an_unavailable_engine_fires_when_a_request_is_due_despite_rounding():
    core = Scheduler(Options("EDF"))
    arrival_s = 68.2224235513494
    ticket = Ticket(Targets("fast"), arrival_s)
    core.submit(ticket, ticket.arrival_s)
    # 128.2224... - 60 is slightly less than the arrival.
    assert core.expire(core.next_event_s(0.0)) == [(ticket, Late.ENGINE)]
