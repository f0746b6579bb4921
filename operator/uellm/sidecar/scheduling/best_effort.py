"""The best-effort queue: demoted requests, the shortest first, with a share for those that have waited long."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from uellm.sidecar.scheduling.alarms import Alarms
from uellm.sidecar.scheduling.entries import Entry, compact
from uellm.sidecar.scheduling.types import Ticket

AGED_S = 60.0
"""Waiting time from which a request counts as aged."""

AGED_SHARE = 0.02
"""Share of the engine seconds for aged requests while others can still be on time. It bounds starvation, and costs
about that share of the on-time requests."""

SHED_AFTER_S = 30.0
"""Shedding begins when hopeless requests of this many engine seconds wait. The overload is then real, and another
replica or a later retry serves a client better than the end of this queue."""


class BestEffortQueue:
    """Demoted requests. A negative `ticket.stamp` marks a ticket that is here, and identifies its latest entry."""

    def __init__(self) -> None:
        self._shortest: list[Entry] = []
        self._oldest: list[Entry] = []
        self._hopeless_at = Alarms()
        self._longest_hopeless: list[Entry] = []
        self._hopeless_work_s: dict[Ticket, float] = {}
        self._work_s: dict[Ticket, float] = {}
        self._hopeless_s = 0.0
        self._credit_s = 0.0
        self._stamp = 0

    def __len__(self) -> int:
        return len(self._work_s)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._work_s)

    def add(self, ticket: Ticket, work_s: float, key: float, hopeless_s: float) -> None:
        """Add a request of `work_s` engine seconds, which is hopeless from `hopeless_s` on. The least key is first."""
        self._stamp -= 1
        ticket.stamp = self._stamp
        self._work_s[ticket] = work_s
        heapq.heappush(self._shortest, (key, ticket.sequence, self._stamp, ticket))
        heapq.heappush(self._oldest, (ticket.arrival_s, ticket.sequence, self._stamp, ticket))
        self._hopeless_at.add(hopeless_s, ticket)

    def remove(self, ticket: Ticket) -> None:
        """Remove a request."""
        ticket.stamp = 0
        del self._work_s[ticket]
        self._hopeless_s -= self._hopeless_work_s.pop(ticket, 0.0)
        if not self._hopeless_work_s:
            self._hopeless_s = 0.0
        waiting = len(self._work_s)
        self._hopeless_at.compact(waiting)
        for heap in (self._shortest, self._oldest, self._longest_hopeless):
            compact(heap, waiting)

    def first(self, now_s: float, *, ageing: bool) -> Ticket | None:
        """The next request when none can be on time any more."""
        if ageing and (oldest := self._aged(now_s)) is not None:
            return oldest
        return _top(self._shortest)

    def due(self, now_s: float) -> Ticket | None:
        """The oldest aged request, if the aged share covers its work. It then goes before on-time requests."""
        oldest = self._aged(now_s)
        return oldest if oldest is not None and self._work_s[oldest] <= self._credit_s else None

    def record_dispatch(self, ticket: Ticket, work_s: float, now_s: float) -> None:
        """Update the aged share after any request was sent to the engine."""
        oldest = self._aged(now_s)
        if oldest is None:
            self._credit_s = 0.0
        elif ticket is oldest:
            self._credit_s = max(0.0, self._credit_s - work_s)
        else:
            self._credit_s += AGED_SHARE * work_s

    def mark_hopeless(self, now_s: float) -> None:
        """Mark the requests that cannot be on time any more."""
        while (ticket := self._hopeless_at.due(now_s)) is not None:
            if ticket in self._work_s and ticket not in self._hopeless_work_s:
                work_s = self._hopeless_work_s[ticket] = self._work_s[ticket]
                self._hopeless_s += work_s
                heapq.heappush(self._longest_hopeless, (-work_s, ticket.sequence, ticket.stamp, ticket))

    def shed(self) -> Ticket | None:
        """The longest hopeless request, while too many wait."""
        return _top(self._longest_hopeless) if self._hopeless_s > SHED_AFTER_S else None

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
