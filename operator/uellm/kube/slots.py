"""How many writes are open at a time, and who is next.

An API server that is asked for more than it can do answers every request late, in the end too late: requests then time
out, are sent again, and add to what it cannot do. So few writes are open at a time, and the others wait here. What a
person waits for goes ahead, and has some slots of its own. What nobody waits for comes last.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from enum import IntEnum

MOST_OPEN = 8
URGENT_BESIDES = 4


class Priority(IntEnum):
    """Of a task's writes."""

    URGENT = 0
    ORDINARY = 1
    LATER = 2


_priority: ContextVar[Priority] = ContextVar("priority", default=Priority.ORDINARY)


@contextmanager
def writes(priority: Priority) -> Iterator[None]:
    """The priority of writes of this task."""
    token = _priority.set(priority)
    try:
        yield
    finally:
        _priority.reset(token)


class Slots:
    """A number of slots. The most urgent one gets the next that is free; of equal ones, the one that came first."""

    def __init__(self, number: int = MOST_OPEN, *, urgent_besides: int = 0) -> None:
        """`urgent_besides`: slots that urgent writes have besides."""
        self._free = number
        self._free_for_urgent = urgent_besides
        self._lines: tuple[deque[asyncio.Future[None]], ...] = tuple(deque() for _ in Priority)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it."""
        priority = _priority.get()
        if priority is Priority.URGENT and not self._free and self._free_for_urgent:
            self._free_for_urgent -= 1
            try:
                yield
            finally:
                self._free_for_urgent += 1
            return
        if self._free:
            self._free -= 1
        else:
            await self._wait(self._lines[priority])
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
