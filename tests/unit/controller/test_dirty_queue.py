from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
import uvloop

from uellm.controller.queue import FIRST, DirtyQueue, Schedule
from uellm.kube import Unavailable
from uellm.kube.slots import Priority, Slots, requests


@pytest.fixture
def schedule():
    return Schedule(jitter=lambda: 1.0)


def test_a_key_marked_twice_is_processed_once(schedule):
    schedule.mark("a", 0)
    schedule.mark("a", 0)
    assert schedule.take(0) == "a"
    schedule.done("a")
    assert schedule.take(0) is None


def test_a_key_is_never_processed_twice_at_a_time_and_comes_again_afterwards(schedule):
    schedule.mark("a", 0)
    assert schedule.take(0) == "a"
    schedule.mark("a", 1)
    assert schedule.take(1) is None
    assert schedule.next_due_s() is None
    schedule.done("a")
    assert schedule.take(1) == "a"


def test_keys_come_in_the_order_in_which_they_are_due(schedule):
    for key, at_s in (("late", 5), ("early", 1), ("early-too", 1)):
        schedule.mark(key, at_s)
    assert [schedule.take(9) for _ in range(4)] == ["early", "early-too", "late", None]


def test_nothing_is_taken_before_it_is_due(schedule):
    schedule.mark("a", 5)
    assert schedule.take(4.9) is None
    assert schedule.next_due_s() == 5


def test_the_earlier_of_two_marks_applies(schedule):
    schedule.mark("a", 5)
    schedule.mark("a", 9)
    assert schedule.next_due_s() == 5
    schedule.mark("a", 2)
    assert schedule.take(2) == "a"
    schedule.done("a")
    assert schedule.take(9) is None


def test_failures_back_off_and_a_success_forgets_them(schedule):
    delays = []
    now = 0.0
    for _ in range(4):
        schedule.mark("a", now)
        assert schedule.take(now) == "a"
        delays.append(schedule.failed("a", now))
        now += delays[-1]
    assert delays == [0.5, 1.0, 2.0, 4.0]
    assert schedule.take(now) == "a"
    schedule.done("a")
    schedule.mark("a", now)
    schedule.take(now)
    assert schedule.failed("a", now) == 0.5


def test_marks_that_came_during_a_failing_pass_wait_for_the_backoff(schedule):
    schedule.mark("a", 0)
    schedule.take(0)
    schedule.mark("a", 0)
    schedule.failed("a", 0)
    assert schedule.take(0.4) is None
    assert schedule.take(0.5) == "a"


def test_a_change_by_a_person_during_a_failing_pass_begins_the_backoff_anew(schedule):
    now = 0.0
    for _ in range(5):
        schedule.mark("a", now)
        schedule.take(now)
        now += schedule.failed("a", now)
    schedule.mark("a", now)
    schedule.take(now)
    schedule.mark("a", now, first=True)
    assert schedule.failed("a", now) == 0.5


def test_an_event_ends_a_backoff_early(schedule):
    schedule.mark("a", 0)
    schedule.take(0)
    schedule.failed("a", 0, at_least_s=30)
    schedule.mark("a", 1)
    assert schedule.take(1) == "a"


def test_the_age_of_the_oldest_work_is_known(schedule):
    assert schedule.longest_work_s(7) == 0
    schedule.mark("a", 0)
    schedule.take(3)
    assert schedule.longest_work_s(7) == 4


class Handler:
    """Returns the next of `answers` in each pass, and sets an event when none is left."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.handled = []
        self.finished = asyncio.Event()

    async def __call__(self, key):
        self.handled.append(key)
        answer = self.answers.pop(0)
        if not self.answers:
            self.finished.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def run(handler, *keys):
    queue = DirtyQueue(handler)
    workers = [asyncio.create_task(queue.work_off()) for _ in range(2)]
    queue.mark_all(keys)
    async with asyncio.timeout(10):
        await handler.finished.wait()
    for worker in workers:
        worker.cancel()
    return handler.handled


async def test_every_marked_key_is_handled():
    assert sorted(await run(Handler(None, None, None), "a", "b", "c")) == ["a", "b", "c"]


async def test_a_pass_may_ask_to_come_again():
    assert await run(Handler(0.01, 0.0, None), "a") == ["a", "a", "a"]


async def test_a_pass_that_fails_comes_again(caplog):
    outage = Unavailable(503, "ServiceUnavailable", "try later")
    assert await run(Handler(outage, None), "a") == ["a", "a"]
    assert "a failed, again in" in caplog.text or caplog.text == ""


async def test_a_mistake_in_a_pass_ends_no_worker(caplog):
    assert await run(Handler(ValueError("oops"), None), "a") == ["a", "a"]
    assert "oops" in caplog.text


def test_a_key_that_goes_first_is_taken_before_all_that_are_due():
    schedule = Schedule()
    for key in ("a", "b", "c"):
        schedule.mark(key, 0)
    schedule.mark("c", 5, first=True)
    schedule.mark("d", 1, first=True)
    assert [schedule.take(5) for _ in range(5)] == ["c", "d", "a", "b", None]


def test_a_key_that_goes_first_still_waits_until_its_work_is_done():
    schedule = Schedule()
    schedule.mark("a", 0)
    assert schedule.take(0) == "a"
    schedule.mark("b", 0)
    schedule.mark("a", 1, first=True)
    assert schedule.take(1) == "b"
    assert schedule.take(1) is None
    schedule.done("a")
    assert schedule.take(1) == "a"
    assert schedule.take(9) is None


async def test_a_key_that_goes_first_waits_for_no_worker_that_is_busy_with_others():
    free, handled = asyncio.Event(), asyncio.Queue()

    async def handle(key):
        handled.put_nowait(key)
        if key != "scaled":
            await free.wait()

    queue = DirtyQueue(handle)
    workers = [asyncio.create_task(queue.work_off(only_first=only_first)) for only_first in (False, True)]
    async with asyncio.timeout(10):
        queue.mark_all(["new", "newer"])
        assert await handled.get() == "new"
        queue.mark("scaled", FIRST)
        assert await handled.get() == "scaled"
        free.set()
        assert await handled.get() == "newer"
    for worker in workers:
        worker.cancel()


async def test_a_key_that_is_due_earlier_than_the_others_does_not_wait_for_them():
    handled = asyncio.Queue()

    async def handle(key):
        handled.put_nowait(key)

    queue = DirtyQueue(handle)
    worker = asyncio.create_task(queue.work_off())
    queue.mark("late", 3600)
    queue.mark("soon", 0.01)
    async with asyncio.timeout(10):
        assert await handled.get() == "soon"
    worker.cancel()


@pytest.mark.parametrize("loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_keys_that_are_due_within_a_millisecond_are_handled_on_either_loop(loop_factory):
    handled = []

    async def handle(key):
        handled.append(key)
        if len(handled) == 4:
            everything.set_result(None)

    async def main():
        nonlocal everything
        everything = asyncio.get_running_loop().create_future()
        queue = DirtyQueue(handle)
        worker = asyncio.create_task(queue.work_off())
        for key, after_s in (("d", 0.0004), ("c", 0.0003), ("b", 0.0002), ("a", 0.0001)):
            queue.mark(key, after_s)
        async with asyncio.timeout(10):
            await everything
        worker.cancel()

    everything: asyncio.Future[None]
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert sorted(handled) == ["a", "b", "c", "d"]


async def test_passes_that_wait_for_nothing_leave_the_event_loop_to_others_in_between():
    order, finished = [], asyncio.Event()

    async def handle(key):
        order.append(key)
        if key == 59:
            finished.set()

    async def others():
        while True:
            order.append("others")
            await asyncio.sleep(0)

    queue = DirtyQueue(handle)
    queue.mark_all(range(60))
    tasks = [asyncio.create_task(each) for each in (others(), *(queue.work_off() for _ in range(4)))]
    await finished.wait()
    for task in tasks:
        task.cancel()
    passes = [index for index, each in enumerate(order) if each != "others"]
    assert len(passes) == 60
    # The workers start together, with a pass each; from then on a pass follows a pass only after the others.
    assert all(after - before > 1 for before, after in pairwise(passes[4:]))


async def test_what_is_at_work_when_a_person_changes_it_writes_ahead_of_the_others():
    slots, written, started = Slots(1), [], asyncio.Event()

    async def handle(key):
        started.set()
        async with slots.slot():
            written.append(key)

    async def another():
        with requests(Priority.ORDINARY):
            async with slots.slot():
                written.append("another")

    queue = DirtyQueue(handle)
    worker = asyncio.create_task(queue.work_off())
    async with slots.slot():
        first = asyncio.create_task(another())
        await asyncio.sleep(0)
        queue.mark("changed")
        await started.wait()
        queue.mark("changed", FIRST)
    await first
    worker.cancel()
    assert written[:2] == ["changed", "another"]
