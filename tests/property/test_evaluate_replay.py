"""Every policy over small random traces, with a minimal engine in place of vLLM's (tests/e2e uses that one)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.toy_engine import CLASSES, ENGINE, ToyEngine, front
from uellm.errors import CannotBeDone
from uellm.evaluate.bound import bound
from uellm.evaluate.front import DirectFront, Reaction
from uellm.evaluate.measure import measure
from uellm.evaluate.policies import find_policy, policy_names
from uellm.evaluate.replay import OneDoor, Replay, ReplayResult
from uellm.evaluate.scenario import Job, draw_jobs
from uellm.evaluate.station import Station
from uellm.evaluate.traces import Trace, TraceRequest

requests = st.builds(
    TraceRequest,
    arrival_s=st.floats(0, 1.5),
    prompt_tokens=st.integers(1, 400),
    output_tokens=st.integers(1, 40),
    client=st.sampled_from(["a", "b"]),
    blocks=st.just(()),
)
traces = st.lists(requests, min_size=1, max_size=40).map(
    lambda some: Trace("t", tuple(sorted(some, key=lambda request: request.arrival_s)))
)


def replayed(trace: Trace, name: str, *, speed: float = 1.0, reaction_s: float = 0.0) -> tuple[list[Job], ReplayResult]:
    jobs = draw_jobs(trace, CLASSES, seed=1, limit=None, max_tokens=1000)
    station = Station(ToyEngine(), front(name), lambda: reaction_s)  # type: ignore[arg-type]
    return jobs, Replay(jobs, OneDoor(station), speed).run()


@settings(max_examples=150, deadline=None)
@given(traces, st.sampled_from(policy_names()), st.sampled_from([0.5, 2.0, 20.0]), st.sampled_from([0.0, 0.02]))
def test_every_request_is_answered_whole_or_refused(trace: Trace, name: str, speed: float, reaction_s: float) -> None:
    jobs, outcome = replayed(trace, name, speed=speed, reaction_s=reaction_s)

    for job, fate in zip(jobs, outcome.fates, strict=True):
        if fate.refused:
            assert (fate.first_token_s, fate.end_s) == (None, None)
        else:
            assert fate.arrival_s == job.arrival_s / speed
            assert fate.tokens == job.output_tokens
            assert fate.first_token_s is not None
            assert fate.end_s is not None
            assert fate.arrival_s + reaction_s < fate.first_token_s <= fate.end_s


@settings(max_examples=60, deadline=None)
@given(traces, st.sampled_from(policy_names()), st.sampled_from([0.5, 2.0, 20.0]))
def test_no_policy_attains_more_than_the_bound(trace: Trace, name: str, speed: float) -> None:
    jobs, outcome = replayed(trace, name, speed=speed)

    assert measure(jobs, outcome)["attainment"]["all"] <= bound(jobs, ENGINE, speed)


@settings(max_examples=60, deadline=None)
@given(traces)
def test_the_same_replay_has_the_same_outcome(trace: Trace) -> None:
    assert replayed(trace, "SLO-ODBS", speed=5.0)[1].fates == replayed(trace, "SLO-ODBS", speed=5.0)[1].fates


def test_twice_the_load_of_the_highest_goodput_leaves_nine_tenths_of_it() -> None:
    generator, at_s, some = random.Random(3), 0.0, []
    for _ in range(600):
        at_s += generator.expovariate(4.0)
        some.append(TraceRequest(at_s, generator.randint(20, 300), generator.randint(2, 40), generator.choice("ab")))

    def goodput(name: str, speed: float) -> float:
        """Requests on time for each second of arrivals. Requests that still wait at the end do not count."""
        jobs, outcome = replayed(Trace("t", tuple(some)), name, speed=speed)
        return measure(jobs, outcome)["attainment"]["all"] * len(jobs) / (jobs[-1].arrival_s / speed)

    def kept(name: str) -> float:
        highest, at = max((goodput(name, speed), speed) for speed in (1.0, 2.0, 3.0))
        return goodput(name, 2 * at) / highest

    assert kept("SLO-ODBS") >= 0.9
    assert kept("engine-FCFS") < 0.5, "no overload at all: the test says nothing"


class Hoarder(DirectFront):
    """A policy that sends nothing."""

    queued = 1

    def react(self, now_s: float) -> Reaction:
        return Reaction()


def test_a_policy_that_stops_sending_is_an_error() -> None:
    policy = find_policy("engine-FCFS")
    assert policy.priority is not None
    jobs = draw_jobs(Trace("t", (TraceRequest(0.0, 1, 1),)), CLASSES, seed=1, limit=None, max_tokens=100)

    hoarder = Hoarder(policy, policy.priority)
    hoarder.polls = True
    with pytest.raises(CannotBeDone, match="leaves the engine idle while 1 requests wait"):
        Replay(jobs, OneDoor(Station(ToyEngine(), hoarder))).run()  # type: ignore[arg-type]
