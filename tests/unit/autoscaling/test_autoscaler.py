from __future__ import annotations

import math
from dataclasses import replace

import pytest

from uellm.autoscaling import Autoscaler, Bounds, Interval, MeanLengths, ReplicaEngine, ShareOfClass
from uellm.autoscaling.forecast import DAY_MINUTES, Forecaster
from uellm.autoscaling.miss_curve import MissCurve, at
from uellm.planner.request import SloClass
from uellm.step_time import StepTime

REPLICA = ReplicaEngine(StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3), 256, 256, 384_000)
CLASSES = (ShareOfClass(SloClass("chat", 1.0, 0.06, None), 1.0),)
BOUNDS = Bounds(1, 20)


def interval(number: int, requests: int, ready: int, queued: int = 0, served: int | None = None) -> Interval:
    """All requests end; those that are not served are refused."""
    answers = requests if served is None else served
    return Interval(
        end_s=(number + 1) * 15.0,
        seconds=15.0,
        arrived=requests,
        ended=requests,
        met=answers,
        prompts=requests,
        prompt_tokens=900.0 * requests,
        answers=answers,
        output_tokens=200.0 * answers,
        running=0,
        queued=queued,
        ready=ready,
    )


def after(autoscaler: Autoscaler, requests: int, intervals: int, start: int = 0, ready: int = 2) -> int:
    """The number after so many intervals with so many requests each; replicas follow at once."""
    for number in range(start, start + intervals):
        autoscaler.observe(interval(number, requests, ready))
        ready = autoscaler.decide((number + 1) * 15.0, ready, BOUNDS).replicas
    return ready


def test_a_replica_works_at_its_saturated_rate() -> None:
    lengths = MeanLengths(900.0, 200.0)

    assert REPLICA.work_s(lengths) * REPLICA.saturated(lengths).requests_per_s == pytest.approx(1.0)
    assert REPLICA.tpot_s(lengths, 0.2) < REPLICA.tpot_s(lengths, 0.9) <= REPLICA.saturated(lengths).tpot_s


def test_a_prompt_of_many_steps_is_the_work_of_all_of_them() -> None:
    one_step = REPLICA.work_s(MeanLengths(200.0, 1.0))

    assert 90 * one_step < REPLICA.work_s(MeanLengths(25_600.0, 1.0)) < 180 * one_step


def test_a_load_of_three_replicas_is_given_more_than_three() -> None:
    rate = 3 / REPLICA.work_s(MeanLengths(900.0, 200.0))

    assert 4 <= after(Autoscaler(REPLICA, CLASSES), round(rate * 15), 80) <= 6


def test_one_miss_in_a_thousand_is_avoided_where_fewer_are_allowed() -> None:
    requests = round(0.8 * 15 / REPLICA.work_s(MeanLengths(900.0, 200.0)))

    def replicas(attainment: float) -> int:
        autoscaler = Autoscaler(REPLICA, CLASSES, attainment=attainment)
        for number in range(2000):
            figures = interval(number, requests, ready=2)
            autoscaler.observe(replace(figures, met=figures.met - (number % 10 == 0)))
        return autoscaler.decide(30_000.0, 2, BOUNDS).needed

    assert replicas(0.99) == 2
    assert replicas(0.9995) > 2


def test_a_refused_request_is_as_much_work_as_one_that_was_served() -> None:
    rate = round(6 * 15 / REPLICA.work_s(MeanLengths(900.0, 200.0)))
    served, mostly_refused = Autoscaler(REPLICA, CLASSES), Autoscaler(REPLICA, CLASSES)
    for number in range(4):
        served.observe(interval(number, rate, 1))
        mostly_refused.observe(interval(number, rate, 1, served=rate // 6))

    assert mostly_refused.lengths == served.lengths
    assert mostly_refused.decide(60.0, 1, BOUNDS).work == served.decide(60.0, 1, BOUNDS).work


def test_while_nothing_ends_the_lengths_are_those_that_are_assumed() -> None:
    autoscaler = Autoscaler(REPLICA, CLASSES)
    autoscaler.observe(replace(interval(0, 0, 1), arrived=50, running=50))

    assert autoscaler.lengths == Autoscaler(REPLICA, CLASSES).lengths


def test_replicas_are_given_up_only_after_the_hold() -> None:
    autoscaler = Autoscaler(REPLICA, CLASSES, startup_s=480.0)
    rate = round(6 * 15 / REPLICA.work_s(MeanLengths(900.0, 200.0)))
    high = after(autoscaler, rate, 80)

    assert after(autoscaler, 1, 30, start=80, ready=high) == high
    assert after(autoscaler, 1, 60, start=110, ready=high) == 1


def test_a_load_about_the_limit_is_told_once() -> None:
    autoscaler, told = Autoscaler(REPLICA, CLASSES), []
    high, low = (round(load * 15 / REPLICA.work_s(MeanLengths(900.0, 200.0))) for load in (12, 1))
    for number in range(120):
        autoscaler.observe(interval(number, high if number % 20 < 10 else low, 4))
        told.append(autoscaler.decide((number + 1) * 15.0, 4, Bounds(1, 4)).limited)
    assert told[-100:] == [True] * 100


def test_a_queue_orders_replicas_above_those_for_what_arrives() -> None:
    autoscaler = Autoscaler(REPLICA, CLASSES)
    before = after(autoscaler, 100, 40)
    autoscaler.observe(interval(40, 100, before, queued=2000))

    assert autoscaler.decide(41 * 15.0, before, BOUNDS).replicas > before


@pytest.mark.parametrize("startup_s", [120.0, 480.0])
def test_a_queue_that_is_gone_before_another_replica_could_serve_orders_none(startup_s: float) -> None:
    autoscaler = Autoscaler(REPLICA, CLASSES, startup_s=startup_s)
    rate = round(2 * 15 / REPLICA.work_s(MeanLengths(900.0, 200.0)))
    ready = after(autoscaler, rate, 80)
    before = autoscaler.decide(80 * 15.0, ready, BOUNDS)
    autoscaler.observe(interval(80, rate, ready, queued=500))
    at_the_look = autoscaler.decide(81 * 15.0, ready, BOUNDS)
    autoscaler.observe(interval(81, rate, ready))

    assert before.needed == at_the_look.needed == autoscaler.decide(82 * 15.0, ready, BOUNDS).needed


def test_a_queue_that_stands_orders_replicas_whatever_those_that_are_ready_are_thought_to_do() -> None:
    autoscaler = Autoscaler(REPLICA, CLASSES, startup_s=480.0)
    rate = round(2 * 15 / REPLICA.work_s(MeanLengths(900.0, 200.0)))
    ready = after(autoscaler, rate, 80)
    numbers = []
    for number in range(80, 80 + 16):
        autoscaler.observe(interval(number, rate, ready, queued=2000))
        numbers.append(autoscaler.decide((number + 1) * 15.0, ready, BOUNDS).replicas)

    assert numbers[0] == ready
    assert numbers[-1] > ready


def test_the_first_look_cannot_tell_that_a_queue_stands() -> None:
    autoscaler = Autoscaler(REPLICA, CLASSES, startup_s=480.0)
    autoscaler.observe(interval(0, 0, 4, queued=500))

    assert autoscaler.decide(15.0, 4, BOUNDS).needed <= 4


def test_a_queue_of_an_overload_orders_replicas_at_once() -> None:
    autoscaler = Autoscaler(REPLICA, CLASSES, startup_s=480.0)
    work_s = REPLICA.work_s(MeanLengths(900.0, 200.0))
    ready = after(autoscaler, round(15 / work_s), 80)
    for number in range(80, 84):
        autoscaler.observe(interval(number, round(1.1 * ready * 15 / work_s), ready))
    without = autoscaler.decide(84 * 15.0, ready, BOUNDS).needed
    autoscaler.observe(interval(84, round(1.1 * ready * 15 / work_s), ready, queued=2000))

    assert autoscaler.decide(85 * 15.0, ready, BOUNDS).needed > without + 1


def test_without_any_request_none_is_needed() -> None:
    autoscaler = Autoscaler(REPLICA, CLASSES)
    autoscaler.observe(interval(0, 0, 1))

    assert autoscaler.decide(15.0, 0, Bounds(0, 5)).needed == 0


def test_measured_misses_replace_the_estimate() -> None:
    curve = MissCurve()
    before = at(curve.shares(lambda u: 0.2), 0.5)
    for _ in range(50):
        curve.observe(0.52, 10_000, 10)

    assert before == pytest.approx(0.2)
    assert at(curve.shares(lambda u: 0.2), 0.52) == pytest.approx(0.001, abs=5e-4)


def test_a_forecast_follows_the_same_time_of_earlier_days() -> None:
    forecaster = Forecaster(minutes_ahead=10)
    for minute in range(3 * DAY_MINUTES + 480):
        forecaster.observe(minute, 2.0 + math.sin(2 * math.pi * minute / DAY_MINUTES * 4))

    work, factors = forecaster.forecast()

    expected = 2.0 + math.sin(2 * math.pi * (480 + 9) / DAY_MINUTES * 4)
    assert work == pytest.approx(expected, rel=0.03)
    assert factors == sorted(factors)
    assert factors[len(factors) // 2] == pytest.approx(1.0, abs=0.03)


def test_errors_of_forecasts_widen_the_next_one() -> None:
    calm, rough = Forecaster(3), Forecaster(3)
    for minute in range(600):
        calm.observe(minute, 1.0)
        rough.observe(minute, 2.0 if minute % 50 < 6 else 1.0)

    assert calm.forecast()[1][-1] < rough.forecast()[1][-1]
