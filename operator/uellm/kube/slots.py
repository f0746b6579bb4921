"""How many requests are open at a time, and who is next.

An API server that is asked for more than it can do answers every request late, in the end too late: requests then time
out, are sent again, and add to what it cannot do. So few are open at a time, and the others wait here. What a
person waits for goes ahead, and has some slots of its own. What nobody waits for comes last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
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
        self.on_rise: list[Callable[[], None]] = []

    def rise(self) -> None:
        """A person waits for the task from now on."""
        self.priority = Priority.URGENT
        for each in tuple(self.on_rise):
            each()


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
    turn: asyncio.Future[bool]
    """Whether its slot is one of those that only urgent requests have."""


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
        besides = False
        if self._free:
            self._free -= 1
        elif urgency.priority is Priority.URGENT and self._free_for_urgent:
            self._free_for_urgent -= 1
            besides = True
        else:
            besides = await self._wait(urgency)
        try:
            yield
        finally:
            self._give_back(besides)

    async def _wait(self, urgency: Urgency) -> bool:
        waiting = _Waiting(urgency, asyncio.get_running_loop().create_future())

        def risen() -> None:
            if self._free_for_urgent and not waiting.turn.done():
                self._free_for_urgent -= 1
                waiting.turn.set_result(True)

        self._line.append(waiting)
        urgency.on_rise.append(risen)
        try:
            return await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled():
                self._give_back(waiting.turn.result())  # it was given a slot in the same moment
            raise
        finally:
            urgency.on_rise.remove(risen)

    def _give_back(self, besides: bool) -> None:
        self._line = [each for each in self._line if not each.turn.done()]
        able = [each for each in self._line if not besides or each.urgency.priority is Priority.URGENT]
        if able:
            chosen = min(able, key=lambda each: each.urgency.priority)
            self._line.remove(chosen)
            chosen.turn.set_result(besides)
        elif besides:
            self._free_for_urgent += 1
        else:
            self._free += 1
