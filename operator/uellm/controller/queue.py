"""The queue of keys to reconcile: each key is queued at most once, at work at most once, and retried after a failure.

`Schedule` is the bookkeeping, with the time as an argument; `DirtyQueue` runs it on the event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Generic, Protocol, TypeVar

from uellm.errors import UellmError
from uellm.kube.slots import Priority, Urgency, requests

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

FIRST = -1.0
"""In place of seconds: at once, and ahead of everything that is due."""
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0


def backoff_s(failures: int, jitter: float) -> float:
    """Seconds to wait after this number of failures in a row. `jitter`, from 0 to 1, spreads keys that fail together.

    >>> backoff_s(1, 1.0), backoff_s(4, 0.0), backoff_s(100, 1.0)
    (0.5, 2.0, 60.0)
    """
    longest_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 16))
    return longest_s * (0.5 + jitter / 2)


class Schedule(Generic[K]):
    """When each key is due. A key that is marked while it is at work becomes due right after."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._due_s: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        """Due times. A key that was given an earlier one leaves a stale entry here, which is skipped."""
        self._counter = itertools.count()
        self._working_since_s: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._first: dict[K, None] = {}
        """Keys that go ahead of all others, in their order."""
        self.waited_s = 0.0
        """For how long the key that was taken last was due."""
        self.went_first = False
        """Whether the key that was taken last went ahead of others."""

    def __len__(self) -> int:
        return len(self._due_s) + len(self._working_since_s)

    def mark(self, key: K, at_s: float, *, first: bool = False) -> None:
        """Make a key due at a time, unless it is due earlier already. `first`: and then ahead of every other."""
        if first:
            self._first[key] = None
        if self._due_s.get(key, float("inf")) > at_s:
            self._due_s[key] = at_s
            heapq.heappush(self._heap, (at_s, next(self._counter), key))

    @property
    def has_first(self) -> bool:
        """Whether a key waits that goes ahead of all others."""
        return bool(self._first)

    def next_due_s(self) -> float | None:
        """When the next key that is not at work is due."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def take(self, now_s: float, *, only_first: bool = False) -> K | None:
        """Take a key that is due. `done` or `failed` must follow. `only_first`: only one that goes ahead of others."""
        self._drop_stale()
        if not self._heap or self._heap[0][0] > now_s:
            return None
        ahead = next(filter(lambda key: self._is_due(key, now_s), self._first), None)
        if ahead is None and only_first:
            return None
        key = self._heap[0][2] if ahead is None else ahead
        self.went_first = key in self._first
        self._first.pop(key, None)
        # What is left of it in the heap is skipped as stale.
        due_s = self._due_s.pop(key)
        self._working_since_s[key] = now_s
        self.waited_s = now_s - due_s
        return key

    def done(self, key: K) -> None:
        """The work on a key has succeeded."""
        self._failures.pop(key, None)
        self._put_back(key)

    def failed(self, key: K, now_s: float, *, at_least_s: float = 0.0) -> float:
        """The work on a key has failed. Returns the seconds after which it is due again.

        Where it was marked to go ahead of others meanwhile, a person has changed it, and the backoff begins anew.
        """
        self._failures[key] = 1 if key in self._first else self._failures.get(key, 0) + 1
        delay_s = max(at_least_s, backoff_s(self._failures[key], self._jitter()))
        # Marks made meanwhile must not shorten the backoff.
        self._due_s.pop(key, None)
        self._put_back(key)
        self.mark(key, now_s + delay_s)
        return delay_s

    def longest_work_s(self, now_s: float) -> float:
        """Age of the longest-running work in seconds; 0 where there is none."""
        return now_s - min(self._working_since_s.values(), default=now_s)

    def _is_due(self, key: K, now_s: float) -> bool:
        return key not in self._working_since_s and self._due_s.get(key, float("inf")) <= now_s

    def _put_back(self, key: K) -> None:
        del self._working_since_s[key]
        if key in self._due_s:
            heapq.heappush(self._heap, (self._due_s[key], next(self._counter), key))

    def _drop_stale(self) -> None:
        while self._heap:
            at_s, _, key = self._heap[0]
            if self._due_s.get(key) == at_s and key not in self._working_since_s:
                return
            heapq.heappop(self._heap)


class QueueObserver(Protocol):
    """Counts what a queue does."""

    def waited(self, seconds: float) -> None:
        """A key that was due waited for this time."""

    def passed(self, result: str, seconds: float) -> None:
        """A key was handled: `done`, `retried` after a failure that may pass by itself, or `failed`."""


class _Unobserved:
    def waited(self, seconds: float) -> None:
        pass

    def passed(self, result: str, seconds: float) -> None:
        pass


class DirtyQueue(Generic[K]):
    """A Schedule that runs on the event loop. `observer` counts what it does."""

    def __init__(self, handle: Callable[[K], Awaitable[float | None]], observer: QueueObserver | None = None) -> None:
        self._handle = handle
        self._observer = observer or _Unobserved()
        self._schedule: Schedule[K] = Schedule()
        self._urgency: dict[K, Urgency] = {}
        """Of the keys at work."""
        self._turn = asyncio.Lock()
        """On the way to the next key: passes that wait for nothing must not keep the event loop to themselves."""
        self._idle: deque[asyncio.Future[None]] = deque()
        self._idle_for_first: deque[asyncio.Future[None]] = deque()
        self._alarm: asyncio.Handle | None = None
        """Wakes a worker for the next key that is due later."""
        self._rings_at_s = 0.0
        """When it rings. A handle of uvloop does not tell, where that is less than a millisecond away."""

    def __len__(self) -> int:
        return len(self._schedule)

    @property
    def longest_work_s(self) -> float:
        """Age of the longest-running work in seconds; 0 where there is none."""
        return self._schedule.longest_work_s(asyncio.get_running_loop().time())

    def mark(self, key: K, after_s: float = 0.0) -> None:
        """Let a key be handled, at once or after a while; FIRST: ahead of all others."""
        self.mark_all((key,), after_s)

    def mark_all(self, keys: Iterable[K], after_s: float = 0.0) -> None:
        """Let many keys be handled."""
        now_s = asyncio.get_running_loop().time()
        for key in keys:
            if after_s == FIRST and key in self._urgency:
                self._urgency[key].rise()  # the next pass has to wait for this one
            self._schedule.mark(key, now_s + max(0.0, after_s), first=after_s == FIRST)
        self._wake()

    async def work_off(self, *, only_first: bool = False) -> None:
        """Handle keys as they become due, one at a time, until cancelled. Run it several times for more at a time.

        `only_first`: only those that go ahead of others, so that they wait for none of the others.
        """
        loop = asyncio.get_running_loop()
        while True:
            key = self._schedule.take(loop.time(), only_first=only_first)
            if key is None:
                woken: asyncio.Future[None] = loop.create_future()
                (self._idle_for_first if only_first else self._idle).append(woken)
                await woken
                continue
            went_first = self._schedule.went_first
            self._observer.waited(self._schedule.waited_s)
            self._wake()
            with requests(Priority.URGENT if went_first else Priority.ORDINARY) as self._urgency[key]:
                await self._work(key)
            del self._urgency[key]
            if not only_first:
                async with self._turn:
                    await asyncio.sleep(0)

    def _wake(self) -> None:
        """Wake a worker if a key is due, else when one is. Whoever takes a key calls this again for the next."""
        due_s = self._schedule.next_due_s()
        if due_s is None:
            return
        loop = asyncio.get_running_loop()
        if due_s > loop.time():
            if self._alarm is None or self._rings_at_s > due_s:
                if self._alarm is not None:
                    self._alarm.cancel()
                self._alarm, self._rings_at_s = loop.call_at(due_s, self._ring), due_s
            return
        _wake_one(self._idle)
        if self._schedule.has_first:
            _wake_one(self._idle_for_first)

    def _ring(self) -> None:
        self._alarm = None
        self._wake()

    async def _work(self, key: K) -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        try:
            again_s = await self._handle(key)
        except Exception as error:
            result = "retried" if _is_transient(error) else "failed"
            self._observer.passed(result, loop.time() - start_s)
            self._fail(key, error)
        else:
            self._observer.passed("done", loop.time() - start_s)
            self._schedule.done(key)
            if again_s is not None:
                self._schedule.mark(key, loop.time() + again_s)
        self._wake()

    def _fail(self, key: K, error: Exception) -> None:
        requested_s = (error.retry_after_s if isinstance(error, UellmError) else None) or 0.0
        delay_s = self._schedule.failed(key, asyncio.get_running_loop().time(), at_least_s=requested_s)
        logger.log(
            logging.INFO if _is_transient(error) else logging.ERROR,
            "%s failed, again in %.1f s: %s",
            key,
            delay_s,
            error,
            # Our own errors are complete sentences; any other error is a bug, so its traceback is logged.
            exc_info=None if isinstance(error, UellmError) else error,
        )


def _wake_one(idle: deque[asyncio.Future[None]]) -> None:
    while idle:
        worker = idle.popleft()
        if not worker.done():
            worker.set_result(None)
            return


def _is_transient(error: Exception) -> bool:
    return isinstance(error, UellmError) and error.transient
