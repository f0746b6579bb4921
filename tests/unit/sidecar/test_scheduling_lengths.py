"""A prediction that arrives while the request waits moves it to its new position, and loses nothing."""

from __future__ import annotations

import random

import pytest

from helpers.scheduling import scheduler_before, submitted
from uellm.sidecar.scheduling import POLICIES, EngineState, Lengths, Options, Scheduler, Targets, Ticket

TARGETS = Targets("chat", ttft_s=5.0, tpot_s=0.1)
READY = EngineState(ready=True, kv_tokens=1_000_000)


def core(policy: str) -> Scheduler:
    return scheduler_before(EngineState(ready=False), Options(policy))


def queued(scheduler: Scheduler, *p50: float) -> list[Ticket]:
    lengths = [Lengths(each, 2 * each) for each in p50]
    return submitted(scheduler, *(Ticket(TARGETS, 0.0, prompt_tokens=100, lengths=each) for each in lengths))


def handed_out(scheduler: Scheduler, now_s: float = 0.0) -> list[Ticket]:
    """The requests in the order of sending; each is complete before the next is asked for."""
    scheduler.on_engine_state(READY, now_s)
    out: list[Ticket] = []
    while taken := scheduler.dispatchable(now_s):
        out += taken
        for ticket in taken:
            scheduler.on_finish(ticket, now_s, 10)
    return out


def test_the_shortest_goes_first_by_what_was_learned_last():
    scheduler = core("SJF")
    first, second, third = queued(scheduler, 10, 20, 30)
    assert scheduler.on_lengths(third, Lengths(5, 9), 0.0)
    assert scheduler.on_lengths(first, Lengths(90, 99), 0.0)
    assert handed_out(scheduler) == [third, second, first]


def test_a_prediction_that_comes_after_the_request_was_sent_changes_nothing():
    scheduler = core("SLO-ODBS")
    (ticket,) = queued(scheduler, 10)
    scheduler.on_engine_state(READY, 0.0)
    assert scheduler.dispatchable(0.0) == [ticket]
    assert not scheduler.on_lengths(ticket, Lengths(90, 99), 0.0)
    assert ticket.lengths == Lengths(10, 20)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_hands_out_each_request_once_however_often_predictions_change(policy):
    scheduler, source = core(policy), random.Random(1)
    tickets = queued(scheduler, *(source.lognormvariate(5, 1) for _ in range(200)))
    for _ in range(600):
        p50 = source.lognormvariate(5, 1)
        assert scheduler.on_lengths(source.choice(tickets), Lengths(p50, 2 * p50), source.random())
    out = handed_out(scheduler, 1.0)
    assert len(out) == len(set(out)) == 200
    assert scheduler.failure is None
    assert scheduler.queued == 0


def test_a_policy_that_fails_on_a_new_prediction_is_replaced_and_nothing_is_lost(monkeypatch):
    scheduler = core("SLO-ODBS")
    tickets = queued(scheduler, 10, 20)
    monkeypatch.setattr(scheduler._order, "reposition", lambda *_: 1 / 0)
    assert scheduler.on_lengths(tickets[0], Lengths(90, 99), 0.0)
    assert isinstance(scheduler.failure, ZeroDivisionError)
    assert handed_out(scheduler) == tickets
