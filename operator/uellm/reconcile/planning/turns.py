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

    def __init__(self, at_a_time: int, *, on_empty: Callable[[], None]) -> None:
        """`on_empty` is called when no service waits for a turn any more."""
        self._turns = asyncio.Semaphore(at_a_time)
        self._slow_turns = asyncio.Semaphore(max(1, at_a_time - 1))
        self._slow: set[Key] = set()
        self._on_empty = on_empty
        self.waiting = 0
        """Services that wait for a turn."""

    @asynccontextmanager
    async def turn(self, key: Key) -> AsyncIterator[None]:
        """Wait for a turn and hold it. A service that holds one must not ask for another: it would wait for itself."""
        async with AsyncExitStack() as stack:
            self.waiting += 1
            try:
                if key in self._slow:
                    await stack.enter_async_context(self._slow_turns)
                await stack.enter_async_context(self._turns)
            finally:
                self.waiting -= 1
                if not self.waiting:
                    self._on_empty()
            yield

    def record(self, key: Key, seconds: float) -> None:
        """Record how long a service's search took."""
        (self._slow.add if seconds > SLOW_S else self._slow.discard)(key)

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._slow.discard(key)
