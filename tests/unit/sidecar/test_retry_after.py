"""Retry times of refused clients: when there is room, one after the other, within the limits that clients accept."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from uellm.proxying.outcome import Refusal, RequestOutcome, spread_s
from uellm.sidecar.request.retry_after import LEAST_S, MOST_S, QUEUE_SHARE, UNKNOWN_S, RetryTimes


def measured(rate: float, in_flight: int = 20) -> RetryTimes:
    """After 50 completions at `rate` per second while other requests waited; the last of them is at 30 s."""
    times = RetryTimes()
    times.set_waiting(True, 0.0)
    for number in range(50):
        times.record_completion(in_flight, in_flight / rate, 30.0 - (49 - number) / rate)
    return times


def test_the_rate_is_known_once_a_few_were_completed_while_others_waited():
    times = RetryTimes()
    times.set_waiting(True, 0.0)
    times.record_completion(8, 2.0, 2.0)
    times.record_completion(8, 2.0, 2.1)
    assert times.rate(2.1) is None
    times.record_completion(8, 2.0, 2.2)
    assert times.rate(2.2) == pytest.approx(4.0)


def test_completions_without_a_queue_do_not_affect_the_rate():
    times = measured(10.0)
    times.set_waiting(False, 30.0)
    for number in range(100):
        times.record_completion(1, 1.0, 31.0 + number)
    times.set_waiting(True, 1000.0)
    assert times.rate(1000.0) == pytest.approx(10.0)


def test_a_rate_that_has_changed_is_followed():
    times = measured(10.0)
    for number in range(100):
        times.record_completion(20, 20.0, 50.0 + number)
    assert times.rate(149.0) == pytest.approx(1.0, rel=0.2)


def test_the_rate_of_an_engine_without_completions_keeps_falling():
    times = measured(10.0)
    assert times.retry_s(20, 0, 30.0, 0.0) < times.retry_s(20, 0, 50.0, 0.0) < times.retry_s(20, 0, 80.0, 0.0)


def test_a_single_refused_client_returns_when_half_of_the_queue_is_done():
    assert measured(10.0).retry_s(100, 0, 30.0, 0.0) == pytest.approx(QUEUE_SHARE * 100 / 10.0, rel=0.15)


def test_clients_refused_together_return_at_the_rate_at_which_room_is_made():
    times = measured(10.0)
    times = sorted(times.retry_s(40, 0, 30.0, 0.0) for _ in range(200))
    assert times[0] == pytest.approx(2.0, rel=0.2)
    assert times[-1] - times[0] == pytest.approx(19.9, rel=0.2)
    assert max(later - sooner for sooner, later in itertools.pairwise(times)) < 0.2


def test_lower_priorities_do_not_delay_a_higher_one():
    times = measured(10.0)
    for _ in range(200):
        times.retry_s(40, 0, 30.0, 0.0)
    assert times.retry_s(0, 5, 30.0, 0.0) == LEAST_S


def test_the_line_moves_with_the_time():
    times = measured(10.0)
    for _ in range(100):
        times.retry_s(0, 0, 30.0, 0.0)
    times.set_waiting(False, 30.0)
    times.set_waiting(True, 60.0)
    assert times.retry_s(0, 0, 60.0, 0.0) == LEAST_S


def test_before_anything_was_completed_clients_come_back_within_seconds():
    assert tuple(RetryTimes().retry_s(1000, 0, 0.0, chance) for chance in (0.0, 1.0)) == UNKNOWN_S


def test_times_are_within_what_official_clients_accept_and_spread():
    times, generator = measured(1.0), random.Random(1)
    times = [times.retry_s(1000, 0, 30.0, generator.random()) for _ in range(500)]
    assert all(LEAST_S <= time_s <= MOST_S < 60.0 for time_s in times)
    assert max(times) - min(times) > 0.45 * MOST_S


@pytest.mark.parametrize(("retry_after_s", "seconds", "milliseconds"), [(0.25, "1", "250"), (3.2, "4", "3200")])
def test_seconds_are_whole_and_milliseconds_exact(retry_after_s, seconds, milliseconds):
    headers = Refusal(RequestOutcome.QUEUE_FULL, "full", retry_after_s=retry_after_s).headers()
    assert (headers["Retry-After"], headers["retry-after-ms"]) == (seconds, milliseconds)
    assert "x-should-retry" not in headers


def test_an_expired_request_is_not_retried():
    headers = Refusal(RequestOutcome.DEADLINE_PASSED, "late", retry=False).headers()
    assert headers["x-should-retry"] == "false"
    assert "Retry-After" not in headers


def test_spread_times_are_within_their_bounds():
    times = [spread_s((5.0, 15.0)) for _ in range(200)]
    assert all(5.0 <= time_s <= 15.0 for time_s in times)
    assert not math.isclose(min(times), max(times), abs_tol=5.0)
