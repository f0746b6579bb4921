"""How many requests are open at a time, and who is next.

An API server that is asked for more than it can do answers every request late, in the end too late: requests then time
out, are sent again, and add to what it cannot do. So few are open at a time, and the others wait here. What a
person waits for goes ahead, and has some slots of its own. What nobody waits for comes last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from enum import IntEnum
from typing import NamedTuple

MOST_OPEN = 4
URGENT_BESIDES = 4


class Priority(IntEnum):
    """Of a task's requests."""

    URGENT = 0
    ORDINARY = 1
    LATER = 2


class Urgency:
    """The priority of a task's requests. It may rise while they wait."""

    def __init__(self, priority: Priority) -> None:
        self.priority = priority


_urgency: ContextVar[Urgency] = ContextVar("urgency")


@contextmanager
def requests(priority: Priority) -> Iterator[Urgency]:
    """The priority of requests of this task."""
    urgency = Urgency(priority)
    token = _urgency.set(urgency)
    try:
        yield urgency
    finally:
        _urgency.reset(token)


class _Waiting(NamedTuple):
    urgency: Urgency
    turn: asyncio.Future[None]


class Slots:
    """A number of slots. The most urgent one gets the next that is free; of equal ones, the one that came first."""

    def __init__(self, number: int = MOST_OPEN, *, urgent_besides: int = 0) -> None:
        """`urgent_besides`: slots that urgent requests have besides."""
        self._free = number
        self._free_for_urgent = urgent_besides
        self._line: list[_Waiting] = []
        """In the order in which they came."""

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it."""
        urgency = _urgency.get(None) or Urgency(Priority.ORDINARY)
        if urgency.priority is Priority.URGENT and not self._free and self._free_for_urgent:
            self._free_for_urgent -= 1
            try:
                yield
            finally:
                self._free_for_urgent += 1
            return
        if self._free:
            self._free -= 1
        else:
            await self._wait(urgency)
        try:
            yield
        finally:
            self._give_back()

    async def _wait(self, urgency: Urgency) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._line.append(_Waiting(urgency, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()  # it was given a slot in the same moment
            raise

    def _give_back(self) -> None:
        self._line = [each for each in self._line if not each.turn.done()]
        if not self._line:
            self._free += 1
            return
        chosen = min(self._line, key=lambda each: each.urgency.priority)
        self._line.remove(chosen)
        chosen.turn.set_result(None)
