"""The worker with a thread in place of its process, and with planning work that the test chooses."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from uellm.reconcile.planning import worker as module
from uellm.reconcile.planning.answer import PlanningQuestion
from uellm.reconcile.planning.worker import RenderTimeout, WorkerProcess


class Request:
    service = "ns/llama"
    objective = "Efficiency"
    adapters = None


@pytest.fixture
def worker(monkeypatch):
    """Creates a worker whose two functions do `work`."""
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda **_: ThreadPoolExecutor(1))
    # A thread can do work that cannot be pickled.
    monkeypatch.setattr(module.Sender, "pack", lambda _, function, *arguments: (function, arguments))
    monkeypatch.setattr(module.parcel, "run", lambda sent: sent[0](*sent[1]))

    def build(work, timeout_s=10.0):
        monkeypatch.setattr(module, "answer", work)
        monkeypatch.setattr(module, "render", work)
        return WorkerProcess(timeout_s=timeout_s)

    return build


@pytest.fixture
def endless():
    """Work that continues until the test is over."""
    over = threading.Event()
    yield lambda *_: over.wait(30)
    over.set()


async def test_a_search_that_takes_too_long_says_what_to_narrow(worker, endless):
    with worker(endless, timeout_s=0.01) as slow:
        answer = await slow.answer(PlanningQuestion(Request()))
    assert answer.choice.failure.reason == "PlanningTimedOut"
    message = "the search took longer than 0.01 s: narrow it by spec.parallelism or placement.gpus"
    assert answer.choice.failure.message == message
    assert answer.rendered is None


async def test_a_search_that_takes_too_long_keeps_the_plan_in_force(worker, endless, make):
    with worker(endless, timeout_s=0.01) as slow:
        answer = await slow.answer(PlanningQuestion(Request(), incumbent=make.plan()))
    assert answer.choice == (make.plan(), None, "", "")


async def test_a_fault_of_the_planner_is_a_failure_of_this_service_alone(worker):
    def broken(*_):
        raise ZeroDivisionError("division by zero")

    with worker(broken) as process:
        answer = await process.answer(PlanningQuestion(Request()))
    assert answer.choice.failure == (
        "PlannerFailed",
        "the planner failed (ZeroDivisionError: division by zero); please report this with the LLMService",
    )


async def test_a_plan_that_is_not_rendered_in_time_is_tried_again_by_a_later_pass(worker, endless, make):
    expected = pytest.raises(RenderTimeout, match=r"^ns/llama: the plan was not rendered in 0\.01 s$")
    with worker(endless, timeout_s=0.01) as slow, expected as refused:
        await slow.render(make.plan(), Request())
    assert refused.value.transient


async def test_the_worker_goes_on_after_a_timeout(worker, endless):
    with worker(endless, timeout_s=0.01) as process:
        await process.answer(PlanningQuestion(Request()))
        worker(lambda *_: "answered")
        process._timeout_s = 10.0
        assert await process.answer(PlanningQuestion(Request())) == "answered"
