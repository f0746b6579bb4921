"""More clients than an engine can serve, with the official clients' retries: it still serves at capacity."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass

import pytest

from uellm.sidecar.request.retry_after import RetryTimes

RETRIES = 2
"""Default of OpenAI's and Anthropic's clients."""


@dataclass
class Ended:
    answered: list[float]
    failed: int
    attempts: int


class Service:
    """An engine with a number of places, a bounded queue in front of it, and clients that retry when they are asked to.

    It has a virtual clock. The sidecar's own `RetryTimes` gives the retry times. The duration of an answer varies by
    half.
    """

    def __init__(self, places: int, service_s: float, bound: int, seed: int) -> None:
        self.places, self.service_s, self.bound = places, service_s, bound
        self.random = random.Random(seed)
        self.retry_times = RetryTimes()
        self.queue: deque[int] = deque()
        self.running = 0
        self.sent_s: dict[int, float] = {}
        self.ended = Ended([], 0, 0)
        self._events: list[tuple[float, int, str, int]] = []
        self._number = itertools.count()

    @property
    def rate(self) -> float:
        return self.places / self.service_s

    def at(self, time_s: float, kind: str, tries: int = 0) -> int:
        number = next(self._number)
        heapq.heappush(self._events, (time_s, number, kind, tries))
        return number

    def run(self) -> Ended:
        while self._events:
            now_s, number, kind, tries = heapq.heappop(self._events)
            if kind == "ask":
                self._ask(now_s, tries)
            else:
                self.ended.answered.append(now_s)
                self.retry_times.record_completion(self.running, now_s - self.sent_s.pop(number), now_s)
                self.running -= 1
            self._fill(now_s)
        return self.ended

    def _ask(self, now_s: float, tries: int) -> None:
        self.ended.attempts += 1
        if len(self.queue) < self.bound:
            self.queue.append(tries)
        elif tries < RETRIES:
            wait_s = self.retry_times.retry_s(len(self.queue), 0, now_s, self.random.random())
            assert 0.0 < wait_s <= 60.0
            self.at(now_s + wait_s, "ask", tries + 1)
        else:
            self.ended.failed += 1

    def _fill(self, now_s: float) -> None:
        while self.queue and self.running < self.places:
            self.queue.popleft()
            self.running += 1
            self.sent_s[self.at(now_s + self.service_s * self.random.uniform(0.75, 1.25), "done")] = now_s
        self.retry_times.set_waiting(bool(self.queue), now_s)


def warm(service: Service) -> float:
    """It has already had a queue; returns when the clients of that queue are gone."""
    for _ in range(service.places + service.bound):
        service.at(0.0, "ask")
    service.run()
    start_s = service.ended.answered[-1] + 1.0
    service.ended = Ended([], 0, 0)
    return start_s


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("bound_s", [0.5, 5.0, 40.0])
@pytest.mark.parametrize(("places", "service_s"), [(4, 8.0), (16, 4.0), (64, 2.0), (32, 0.1)])
def test_three_times_the_load_is_answered_as_fast_as_the_engine_can(places, service_s, bound_s, seed):
    service = Service(places, service_s, max(2, round(bound_s * places / service_s)), seed)
    seconds = max(10.0, 20 * service_s)
    for number in range(round(3 * service.rate * seconds)):
        service.at(number / (3 * service.rate), "ask")
    ended = service.run()
    within = sum(at_s <= seconds for at_s in ended.answered)
    assert within >= 0.9 * service.rate * (seconds - service_s)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("bound_s", [0.5, 2.0, 10.0])
@pytest.mark.parametrize(("places", "service_s"), [(4, 2.0), (16, 4.0), (64, 2.0), (32, 0.1)])
def test_a_burst_that_can_be_served_in_time_is_served_whole_and_without_a_pause(places, service_s, bound_s, seed):
    service = Service(places, service_s, max(4, round(bound_s * places / service_s)), seed)
    start_s = warm(service)
    calls = round(30 * service.rate)
    for _ in range(calls):
        service.at(start_s, "ask")
    ended = service.run()
    assert len(ended.answered) >= 0.9 * calls
    assert ended.attempts <= 2.5 * calls
    needed_s = calls / service.rate + service_s
    most = round(0.95 * len(ended.answered)) - 1
    assert ended.answered[most] - start_s <= needed_s / 0.9


def test_clients_do_not_come_back_together():
    service = Service(16, 1.0, 64, seed=1)
    start_s = warm(service)
    for _ in range(500):
        service.at(start_s, "ask")
    while service._events[0][0] <= start_s:
        _, _, _, tries = heapq.heappop(service._events)
        service._ask(start_s, tries)
        service._fill(start_s)
    back = [int(at_s) for at_s, _, kind, _ in service._events if kind == "ask"]
    assert max(back.count(second) for second in back) <= 4 * service.rate
