"""Waiting times that end by the clock."""

from __future__ import annotations

import heapq

from uellm.sidecar.scheduling.types import State, Ticket


class Alarms:
    """Tickets by due time. Only those still QUEUED count."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, int, Ticket]] = []
        """A heap: those that are due first, and others that are no longer QUEUED."""
        self._removals = 0
        """Since entries were dropped."""

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, at_s: float, ticket: Ticket) -> None:
        """Add a ticket that is due at `at_s`. O(log n)."""
        heapq.heappush(self.entries, (at_s, ticket.sequence, ticket))

    def first_s(self) -> float | None:
        """When the first ticket is due."""
        while self.entries and self.entries[0][-1].state is not State.QUEUED:
            heapq.heappop(self.entries)
        return self.entries[0][0] if self.entries else None

    def due(self, now_s: float) -> Ticket | None:
        """Remove and return a ticket that is due."""
        while self.entries:
            at_s, _, ticket = self.entries[0]
            queued = ticket.state is State.QUEUED
            if queued and at_s > now_s:
                break
            heapq.heappop(self.entries)
            if queued:
                return ticket
        return None

    def clear(self) -> None:
        """Drop all entries: no ticket of theirs is QUEUED."""
        if self.entries:
            self.entries.clear()
        self._removals = 0

    def compact(self, waiting: int) -> None:
        """A ticket was removed: drop invalid entries when they are the majority. O(log n), amortised.

        Memory then follows the number of waiting tickets. Tickets may be QUEUED elsewhere, so that not all that are no
        longer waiting here can be dropped. It therefore takes some removals before the next try.
        """
        self._removals += 1
        most = 64 + 4 * waiting
        if len(self.entries) <= most or 4 * self._removals < len(self.entries):
            return
        self._removals = 0
        self.entries = [entry for entry in self.entries if entry[-1].state is State.QUEUED]
        if len(self.entries) > most // 2:
            # Some tickets were added many times. Their first entry is enough.
            firsts: dict[Ticket, tuple[float, int, Ticket]] = {}
            for entry in sorted(self.entries):
                firsts.setdefault(entry[-1], entry)
            self.entries = list(firsts.values())
        heapq.heapify(self.entries)
