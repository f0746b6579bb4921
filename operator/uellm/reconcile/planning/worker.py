"""The planner in a process of its own, so that a long search delays neither watches nor passes of other services."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from uellm.errors import CannotBeDone
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning import parcel
from uellm.reconcile.planning.answer import PlanningAnswer, PlanningQuestion, answer
from uellm.reconcile.planning.evaluate import Evaluation
from uellm.reconcile.planning.parcel import Sender
from uellm.reconcile.planning.render import render
from uellm.reconcile.rendered_plan import RenderedPlan

logger = logging.getLogger(__name__)

PLANNING_TIMEOUT_S = 120.0

T = TypeVar("T")


class RenderTimeout(CannotBeDone):
    """A plan was not rendered in time; the next pass tries again."""

    transient = True


class PlanningWorker(Protocol):
    """Does the work of planning, wherever it runs."""

    async def answer(self, question: PlanningQuestion) -> PlanningAnswer:
        """Plan, choose and render; see `uellm.reconcile.planning.answer`."""
        ...

    async def render(self, plan: Plan, request: PlanRequest) -> RenderedPlan:
        """Render a plan that was chosen earlier; see `uellm.reconcile.planning.render`."""
        ...


class WorkerProcess:
    """A PlanningWorker in one process, started with the first call and again after it died. A context manager."""

    def __init__(self, *, timeout_s: float = PLANNING_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._pool: ProcessPoolExecutor | None = None
        self._sender = Sender()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    async def answer(self, question: PlanningQuestion) -> PlanningAnswer:
        """Plan, choose and render. A search that takes too long or fails counts as "no fresh plan"."""
        service = question.request.service
        try:
            return await self._run(answer, question)
        except TimeoutError:
            message = (
                f"the search took longer than {self._timeout_s:g} s: narrow it by spec.parallelism or placement.gpus"
            )
            return _no_fresh_plan(question, Obstacle("PlanningTimedOut", message))
        except BrokenProcessPool:
            logger.error("%s the planner's process died while it planned", service)
            raise
        except Exception as error:
            # Whatever failed concerns this service alone, and its user looks into the status first.
            logger.exception("%s the planner failed", service)
            message = f"the planner failed ({type(error).__name__}: {error}); please report this with the LLMService"
            return _no_fresh_plan(question, Obstacle("PlannerFailed", message))

    async def render(self, plan: Plan, request: PlanRequest) -> RenderedPlan:
        """Render a plan that was chosen earlier. Raises RenderTimeout."""
        try:
            return await self._run(render, plan, request)
        except TimeoutError as error:
            raise RenderTimeout(f"{request.service}: the plan was not rendered in {self._timeout_s:g} s") from error

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        if self._pool is None:
            # Spawned, not forked: a fork would copy an event loop and open connections.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_end_with_parent)
        loop = asyncio.get_running_loop()
        delivered = False
        try:
            sent = self._sender.pack(function, *arguments)
            async with asyncio.timeout(self._timeout_s):
                result: T = await loop.run_in_executor(self._pool, parcel.run, sent)
            delivered = True
            return result
        except (TimeoutError, BrokenProcessPool):
            self._end()
            raise
        finally:
            # Whoever was cancelled does not know whether the parcel arrived.
            self._sender.delivered() if delivered else self._sender.start_over()

    def _end(self) -> None:
        """End the process, even in the middle of a search."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        # Only this pool's processes may end, and a pool lists them nowhere else.
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


class Workers:
    """Several PlanningWorkers as one that does as many calls at a time. A context manager."""

    def __init__(self, count: int) -> None:
        self._workers = [WorkerProcess() for _ in range(count)]
        self._idle = list(self._workers)
        self._free = asyncio.Semaphore(count)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.__exit__()

    async def answer(self, question: PlanningQuestion) -> PlanningAnswer:
        """Plan, choose and render."""
        async with self._any() as worker:
            return await worker.answer(question)

    async def render(self, plan: Plan, request: PlanRequest) -> RenderedPlan:
        """Render a plan that was chosen earlier. Raises RenderTimeout."""
        async with self._any() as worker:
            return await worker.render(plan, request)

    @asynccontextmanager
    async def _any(self) -> AsyncIterator[WorkerProcess]:
        async with self._free:
            worker = self._idle.pop()
            try:
                yield worker
            finally:
                self._idle.append(worker)


def _no_fresh_plan(question: PlanningQuestion, failure: Obstacle) -> PlanningAnswer:
    return PlanningAnswer(question.choice(Evaluation(None, failure)), found=False)


def _end_with_parent() -> None:
    """Run at the worker's start: it ends with the process that started it, even if that one is killed."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()
