"""Requests that gave way: best effort, the shortest first, with a share for those that wait long."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from uellm.sidecar.scheduling.alarms import Alarms
from uellm.sidecar.scheduling.types import Ticket

AGED_S = 60.0
"""From here on a request counts as waiting long."""

AGED_SHARE = 0.02
"""Engine seconds for those that wait long, of all that are handed out, while others still can be on time: what bounds
starvation, and costs that many on-time requests."""

SHED_AFTER_S = 30.0
"""Engine seconds of requests that are late whatever happens: with so much of it waiting, the pressure is real, and
another replica, or a later moment, serves a client better than the end of this queue."""

Entry = tuple[float, int, int, Ticket]


class BestEffortQueue:
    """Demoted requests. `ticket.stamp` < 0 tells that a ticket is here, and which entry is its last."""

    def __init__(self) -> None:
        self._shortest: list[Entry] = []
        self._oldest: list[Entry] = []
        self._hopeless = Alarms()
        self._longest_lost: list[Entry] = []
        self._lost: dict[Ticket, float] = {}
        self._work_s: dict[Ticket, float] = {}
        self._lost_s = 0.0
        self._credit_s = 0.0
        self._stamp = 0

    def __len__(self) -> int:
        return len(self._work_s)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._work_s)

    def add(self, ticket: Ticket, work_s: float, key: float, hopeless_s: float) -> None:
        """Demote a request of so many engine seconds; the smaller the key, the sooner its turn."""
        self._stamp -= 1
        ticket.stamp = self._stamp
        self._work_s[ticket] = work_s
        heapq.heappush(self._shortest, (key, ticket.sequence, self._stamp, ticket))
        heapq.heappush(self._oldest, (ticket.arrival_s, ticket.sequence, self._stamp, ticket))
        self._hopeless.add(hopeless_s, ticket)

    def remove(self, ticket: Ticket) -> None:
        """It is here no more."""
        ticket.stamp = 0
        del self._work_s[ticket]
        self._lost_s -= self._lost.pop(ticket, 0.0)
        if not self._lost:
            self._lost_s = 0.0
        waiting = len(self._work_s)
        self._hopeless.compact(waiting)
        most = 64 + 4 * waiting
        for heap in (self._shortest, self._oldest, self._longest_lost):
            if len(heap) > most:
                heap[:] = [entry for entry in heap if entry[3].stamp == entry[2]]
                heapq.heapify(heap)

    def first(self, now_s: float, *, ageing: bool) -> Ticket | None:
        """Whose turn it is when nobody can be on time any more."""
        if ageing and (oldest := self._aged(now_s)) is not None:
            return oldest
        return _top(self._shortest)

    def due(self, now_s: float) -> Ticket | None:
        """One that waits long and whose share has come, though others can be on time."""
        oldest = self._aged(now_s)
        return oldest if oldest is not None and self._work_s[oldest] <= self._credit_s else None

    def record_dispatch(self, ticket: Ticket, work_s: float, now_s: float) -> None:
        """A request, of the tail or not, went to the engine."""
        oldest = self._aged(now_s)
        if oldest is None:
            self._credit_s = 0.0
        elif ticket is oldest:
            self._credit_s = max(0.0, self._credit_s - work_s)
        else:
            self._credit_s += AGED_SHARE * work_s

    def mark_hopeless(self, now_s: float) -> None:
        """Note those that cannot be on time any more."""
        while (ticket := self._hopeless.due(now_s)) is not None:
            if ticket in self._work_s and ticket not in self._lost:
                work_s = self._lost[ticket] = self._work_s[ticket]
                self._lost_s += work_s
                heapq.heappush(self._longest_lost, (-work_s, ticket.sequence, ticket.stamp, ticket))

    def shed(self) -> Ticket | None:
        """The longest of those that are lost, while these are too many."""
        return _top(self._longest_lost) if self._lost_s > SHED_AFTER_S else None

    def next_lost_s(self) -> float | None:
        """When `lose` will have something to note."""
        return self._hopeless.first_s()

    def _aged(self, now_s: float) -> Ticket | None:
        oldest = _top(self._oldest)
        return oldest if oldest is not None and now_s - oldest.arrival_s >= AGED_S else None


def _top(heap: list[Entry]) -> Ticket | None:
    while heap:
        _, _, stamp, ticket = heap[0]
        if ticket.stamp == stamp:
            return ticket
        heapq.heappop(heap)
    return None
