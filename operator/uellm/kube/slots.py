"""How many writes are open at a time, and who is next.

An API server that is asked for more than it can do answers every request late, in the end too late: requests then time
out, are sent again, and add to what it cannot do. So few writes are open at a time, and the others wait here. What a
person waits for goes ahead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

MOST_OPEN = 8

_urgent: ContextVar[bool] = ContextVar("urgent", default=False)


@contextmanager
def urgent(yes: bool) -> Iterator[None]:
    """Whether writes of this task go ahead of others."""
    token = _urgent.set(yes)
    try:
        yield
    finally:
        _urgent.reset(token)


class Slots:
    """A number of slots. Whoever is urgent gets the next one that is free, the others in their order."""

    def __init__(self, number: int = MOST_OPEN) -> None:
        self._free = number
        self._lines: tuple[deque[asyncio.Future[None]], ...] = deque(), deque()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(self._lines[0 if _urgent.get() else 1])
        try:
            yield
        finally:
            self._give_back()

    async def _wait(self, line: deque[asyncio.Future[None]]) -> None:
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()  # it was given a slot in the same moment
            raise

    def _give_back(self) -> None:
        for line in self._lines:
            while line:
                turn = line.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._free += 1
