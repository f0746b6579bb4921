"""How many requests are open at a time, and who is next.

An API server that is asked for more than it can do answers every request late, in the end too late: requests then time
out, are sent again, and add to what it cannot do. So few are open at a time, and the others wait here. What a person
waits for goes ahead, and has some slots of its own; meanwhile one request of all others is open. What nobody waits for
comes last.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from enum import IntEnum
from weakref import WeakSet

MOST_OPEN = 8
URGENT_BESIDES = 4


class Priority(IntEnum):
    """Of a task's requests."""

    URGENT = 0
    ORDINARY = 1
    LATER = 2


_priority: ContextVar[Priority] = ContextVar("priority", default=Priority.ORDINARY)


class _Urgent:
    """The urgent tasks at work, and what waits for their end."""

    def __init__(self) -> None:
        self.at_work = 0
        self.waiting: WeakSet[Slots] = WeakSet()


_urgent = _Urgent()


@contextmanager
def requests(priority: Priority) -> Iterator[None]:
    """The priority of the requests of this task. While an urgent one is at work, the others are held back."""
    token = _priority.set(priority)
    is_urgent = priority is Priority.URGENT
    _urgent.at_work += is_urgent
    try:
        yield
    finally:
        _urgent.at_work -= is_urgent
        _priority.reset(token)
        if is_urgent and not _urgent.at_work:
            for slots in tuple(_urgent.waiting):
                slots.go_on()


class Slots:
    """A number of slots. The most urgent one gets the next that is free; of equal ones, the one that came first."""

    def __init__(self, number: int = MOST_OPEN, *, urgent_besides: int = 0) -> None:
        """`urgent_besides`: slots that urgent requests have besides."""
        self._number = number
        self._urgent_besides = urgent_besides
        self._open = 0
        self._urgent_open = 0
        """Of them, those of urgent requests."""
        self._lines: tuple[deque[asyncio.Future[None]], ...] = tuple(deque() for _ in Priority)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it."""
        priority = _priority.get()
        if self._may_open(priority):
            self._count(priority, 1)
        else:
            await self._wait(priority)
        try:
            yield
        finally:
            self._give_back(priority)

    def go_on(self) -> None:
        """Give free slots to those who wait."""
        for priority, line in zip(Priority, self._lines, strict=True):
            while line and self._may_open(priority):
                turn = line.popleft()
                if not turn.done():
                    self._count(priority, 1)
                    turn.set_result(None)
        if not any(self._lines):
            _urgent.waiting.discard(self)

    def _may_open(self, priority: Priority) -> bool:
        if priority is Priority.URGENT:
            return self._open < self._number + self._urgent_besides
        most = 1 if _urgent.at_work else self._number
        return self._open < self._number and self._open - self._urgent_open < most

    def _count(self, priority: Priority, change: int) -> None:
        self._open += change
        self._urgent_open += change if priority is Priority.URGENT else 0

    async def _wait(self, priority: Priority) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._lines[priority].append(turn)
        _urgent.waiting.add(self)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(priority)  # it was given a slot in the same moment
            raise

    def _give_back(self, priority: Priority) -> None:
        self._count(priority, -1)
        self.go_on()
