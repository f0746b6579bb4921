"""The planner in a process of its own, so that a long search holds up neither watches nor other services' passes."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

from uellm.planner.request import NodeOffer, PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.planning.choose import Evaluation, Failure
from uellm.reconcile.planning.evaluate import end_with_parent, evaluate

logger = logging.getLogger(__name__)

PLANNING_TIMEOUT_S = 120.0


class Evaluator(Protocol):
    """Evaluates a request."""

    async def __call__(
        self, request: PlanRequest, incumbent: Plan | None, hardware: tuple[NodeOffer, ...]
    ) -> Evaluation:
        """See `uellm.reconcile.planning.evaluate`, which this is wherever it runs."""
        ...


class Worker:
    """One process, started with the first request and again after it died. A context manager."""

    def __init__(self, *, timeout_s: float = PLANNING_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    async def __call__(
        self, request: PlanRequest, incumbent: Plan | None, hardware: tuple[NodeOffer, ...]
    ) -> Evaluation:
        """Evaluate in the worker. A search that takes too long, or a worker that dies, is a failure to plan."""
        if self._pool is None:
            # Not by fork: a copy of a process with an event loop and open connections is no good start.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=end_with_parent)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await loop.run_in_executor(self._pool, evaluate, request, incumbent, hardware)
        except TimeoutError:
            self._end()
            message = (
                f"the search took longer than {self._timeout_s:g} s: narrow it by spec.parallelism or placement.gpus"
            )
            return Evaluation(None, Failure("PlanningTimedOut", message))
        except BrokenProcessPool:
            self._end()
            logger.error("%s the planner's process died while it planned", request.service)
            raise
        except Exception as error:
            # Whatever it is, it concerns this service alone, and its user should see it where he looks.
            logger.exception("%s the planner failed", request.service)
            message = f"the planner failed ({type(error).__name__}: {error}); please report this with the LLMService"
            return Evaluation(None, Failure("PlannerFailed", message))

    def _end(self) -> None:
        """End the process even in the middle of a search: nothing it does outlives it."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
