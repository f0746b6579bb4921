"""Who may ask the planner now: a number of searches at a time, in the order in which they were asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from uellm.reconcile.names import Key

SLOW_S = 2.0
"""A search is long above this."""


class Turns:
    """Turns of services. Those whose last search was long leave at least one turn to the others."""

    def __init__(self, at_a_time: int, *, on_waiting: Callable[[int], None]) -> None:
        """`on_waiting` is called with the number of services that wait for a turn whenever it changes."""
        self._turns = asyncio.Semaphore(at_a_time)
        self._slow_turns = asyncio.Semaphore(max(1, at_a_time - 1))
        self._slow: set[Key] = set()
        self._on_waiting = on_waiting
        self.waiting = 0
        """Services that wait for a turn."""

    @asynccontextmanager
    async def turn(self, key: Key) -> AsyncIterator[None]:
        """Wait for a turn and hold it. A service that holds one must not ask for another: it would wait for itself."""
        async with AsyncExitStack() as stack:
            self._count(1)
            try:
                if key in self._slow:
                    await stack.enter_async_context(self._slow_turns)
                await stack.enter_async_context(self._turns)
            finally:
                self._count(-1)
            yield

    def _count(self, change: int) -> None:
        self.waiting += change
        self._on_waiting(self.waiting)

    def record(self, key: Key, seconds: float) -> None:
        """Record how long a service's search took."""
        (self._slow.add if seconds > SLOW_S else self._slow.discard)(key)

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._slow.discard(key)
