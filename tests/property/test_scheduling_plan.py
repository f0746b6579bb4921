"""The on-time set, where all requests in it can be on time, against every possible choice."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.sidecar.scheduling import Targets, Ticket
from uellm.sidecar.scheduling.on_time_set import LEAF_S, OnTimeSet

ANY = Targets("any")
Job = tuple[int, int]
"""Deadline and work, in whole leaves, so that the plan's resolution changes nothing."""

jobs_of = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), max_size=9)


def late(jobs: list[Job]) -> int:
    """Number of late jobs when all run in order of their deadlines: EDF."""
    at = 0
    count = 0
    for deadline, work in sorted(jobs):
        at += work
        count += at > deadline
    return count


def most_on_time(jobs: list[Job]) -> int:
    """The best result over all subsets."""
    for size in range(len(jobs), 0, -1):
        if any(late(list(chosen)) == 0 for chosen in combinations(jobs, size)):
            return size
    return 0


def planned(jobs: list[Job]) -> list[Job]:
    """The jobs that the plan keeps; the longest are dropped first."""
    plan = OnTimeSet(0.0)
    kept = {}
    for number, (deadline, work) in enumerate(jobs):
        ticket = Ticket(ANY, 0.0)
        ticket.sequence = number
        # The middle of a leaf, to avoid rounding; half a leaf is added to the engine's time below.
        plan.add(ticket, (deadline + 0.5) * LEAF_S, work * LEAF_S, 1.0 / work)
        kept[ticket] = (deadline, work)
        while (out := plan.give_way(-1e-6)) is not None:
            plan.remove(out)
            del kept[out]
    assert set(plan.tickets()) == set(kept)
    assert plan.members == len(kept)
    return list(kept.values())


@settings(max_examples=300, deadline=None)
@given(jobs_of)
def test_by_deadline_no_choice_has_more_on_time(jobs):
    assert len(planned(sorted(jobs))) == most_on_time(jobs)


@settings(max_examples=300, deadline=None)
@given(jobs_of)
def test_no_more_jobs_are_late_than_under_edf(jobs):
    assert len(jobs) - len(planned(sorted(jobs))) <= late(jobs)


@settings(max_examples=300, deadline=None)
@given(jobs_of)
def test_no_request_in_the_plan_is_late_in_any_order_of_arrival(jobs):
    assert late(planned(jobs)) == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 12)), min_size=1, max_size=40))
def test_the_first_is_always_the_earliest_deadline(jobs):
    plan = OnTimeSet(0.0)
    for number, (deadline, work) in enumerate(jobs):
        ticket = Ticket(ANY, float(deadline))
        ticket.sequence = number
        plan.add(ticket, deadline * LEAF_S, work * LEAF_S, 1.0)
    taken = []
    while (ticket := plan.first()) is not None:
        plan.remove(ticket)
        taken.append(ticket.arrival_s)
    assert taken == sorted(deadline for deadline, _ in jobs)


def test_the_least_valuable_of_those_in_the_way_gives_way():
    plan = OnTimeSet(0.0)
    cheap, dear, later = (Ticket(ANY, 0.0) for _ in range(3))
    plan.add(cheap, 1.0, 0.6, 0.1)
    plan.add(dear, 1.0, 0.6, 0.2)
    plan.add(later, 9.0, 0.6, 0.01)
    assert plan.give_way(0.0) is cheap
    plan.remove(cheap)
    assert plan.give_way(0.0) is None
    assert plan.slack_s(0.0) > 0.3
