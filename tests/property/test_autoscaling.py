"""The number of replicas: within its bounds, no less for more load, never below what runs, and still when load is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.autoscaling import Autoscaler, Bounds, Interval, MeanLengths, ReplicaDecision, ReplicaEngine, ShareOfClass
from uellm.autoscaling.capacity import expected_miss
from uellm.autoscaling.miss_curve import BINS, WIDTH, MissCurve, at
from uellm.planner.request import SloClass
from uellm.step_time import StepTime

REPLICA = ReplicaEngine(StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3), 256, 256, 384_000)
CLASSES = (
    ShareOfClass(SloClass("chat", 1.0, 0.06, None), 0.5),
    ShareOfClass(SloClass("task", None, None, 10.0), 0.5),
)
INTERVAL_S = 15.0
MANY = Bounds(1, 1000)


def interval(number: int, requests: int, ready: int, *, running: int = 0, queued: int = 0, met: int = -1) -> Interval:
    return Interval(
        (number + 1) * INTERVAL_S,
        INTERVAL_S,
        requests,
        requests,
        requests if met < 0 else met,
        requests,
        900.0 * requests,
        requests,
        200.0 * requests,
        running,
        queued,
        ready,
    )


def decisions(rates: list[int], bounds: Bounds = MANY, wanted: int = 1) -> list[ReplicaDecision]:
    """What is decided after each interval with so many requests, if replicas start at once."""
    autoscaler, made = Autoscaler(REPLICA, CLASSES), []
    for number, rate in enumerate(rates):
        autoscaler.observe(interval(number, rate, max(1, wanted)))
        made.append(autoscaler.decide((number + 1) * INTERVAL_S, wanted, bounds))
        wanted = made[-1].replicas
    return made


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=40), st.integers(0, 5), st.integers(0, 20))
@settings(deadline=None, max_examples=12)
def test_the_number_is_within_its_bounds(rates: list[int], least: int, more: int) -> None:
    bounds = Bounds(least, max(1, least + more))

    for decision in decisions(rates, bounds):
        assert bounds.least <= decision.replicas <= bounds.most
        assert decision.limited or decision.needed <= bounds.most


@given(st.integers(0, 1500), st.integers(0, 1500))
@settings(deadline=None, max_examples=12)
def test_more_load_never_needs_fewer_replicas(one: int, other: int) -> None:
    low, high = sorted((one, other))

    assert decisions([low] * 40)[-1].needed <= decisions([high] * 40)[-1].needed


@given(st.integers(1, 1500))
@settings(deadline=None, max_examples=12)
def test_a_constant_load_that_meets_its_targets_never_raises_the_number_again(rate: int) -> None:
    settled = [decision.replicas for decision in decisions([rate] * 120)[40:]]

    assert settled == sorted(settled, reverse=True)
    assert settled[0] - settled[-1] <= 1


@given(st.integers(0, 5000))
@settings(deadline=None, max_examples=12)
def test_the_number_is_never_below_what_the_running_requests_fill(running: int) -> None:
    autoscaler = Autoscaler(REPLICA, CLASSES)
    autoscaler.observe(interval(0, 0, 4, running=running))

    assert autoscaler.decide(INTERVAL_S, 0, MANY).replicas * REPLICA.sequences >= running


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5000), st.floats(0, 1)), max_size=60))
@settings(deadline=None)
def test_misses_never_fall_with_utilisation(seen: list[tuple[float, int, float]]) -> None:
    curve = MissCurve()
    for utilisation, requests, share in seen:
        curve.observe(utilisation, requests, int(share * requests))

    shares = curve.shares(lambda u: expected_miss(REPLICA, CLASSES, MeanLengths(900.0, 200.0), u))

    assert len(shares) == BINS
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert shares == sorted(shares)
    points = [at(shares, place * WIDTH / 3) for place in range(3 * BINS + 6)]
    assert points == sorted(points)


@given(st.floats(50, 4000), st.floats(10, 1500), st.floats(0.01, 2.0), st.floats(0.01, 2.0))
@settings(deadline=None)
def test_the_estimate_of_misses_is_a_share(prompt: float, output: float, one: float, other: float) -> None:
    shares = [expected_miss(REPLICA, CLASSES, MeanLengths(prompt, output), each) for each in sorted((one, other))]

    assert all(0.0 <= share <= 1.0 for share in shares)
