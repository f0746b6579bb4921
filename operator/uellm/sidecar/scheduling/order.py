"""The orders in which waiting requests can be taken."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from uellm.sidecar.scheduling.types import State, Ticket

Key = tuple[float, ...]


class Order(Protocol):
    """Waiting tickets in some order. Tickets that are no longer QUEUED are passed over."""

    def __len__(self) -> int:
        """Entries in memory."""

    def add(self, ticket: Ticket, now_s: float) -> None:
        """One more waits."""

    def head(self, now_s: float) -> Ticket | None:
        """The next to be taken."""

    def remove(self, ticket: Ticket, now_s: float) -> None:
        """It waits no more; its state has changed already."""


def earliest_deadline(ticket: Ticket) -> Key:
    """EDF, the paper's SLO-DBS: earliest deadline, then the higher priority, then arrival.

    A deadline is fixed at arrival, so waiting alone moves a request forward: nothing starves.
    """
    return ticket.deadline_s, -ticket.targets.priority, ticket.sequence


def first_come(ticket: Ticket) -> Key:
    """FCFS."""
    return (ticket.sequence,)


class Sorted:
    """An order by a key that is fixed at arrival: a heap, rebuilt when most of its entries have left."""

    def __init__(self, key: Callable[[Ticket], Key]) -> None:
        self._key = key
        self._heap: list[tuple[Key, int, Ticket]] = []
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, ticket: Ticket, now_s: float) -> None:
        """One more waits. O(log n)."""
        heapq.heappush(self._heap, (self._key(ticket), ticket.sequence, ticket))
        self._waiting += 1

    def head(self, now_s: float) -> Ticket | None:
        """The next to be taken. O(log n), amortised."""
        while self._heap and self._heap[0][-1].state is not State.QUEUED:
            heapq.heappop(self._heap)
        return self._heap[0][-1] if self._heap else None

    def remove(self, ticket: Ticket, now_s: float) -> None:
        """It waits no more. O(1), amortised."""
        self._waiting -= 1
        if len(self._heap) > 64 + 4 * self._waiting:
            self._heap = [entry for entry in self._heap if entry[-1].state is State.QUEUED]
            heapq.heapify(self._heap)


POLICIES: dict[str, Callable[[], Order]] = {
    "EDF": lambda: Sorted(earliest_deadline),
    "FCFS": lambda: Sorted(first_come),
    "SLO-ODBS": lambda: Sorted(earliest_deadline),
    "engine-only": lambda: Sorted(first_come),
}
