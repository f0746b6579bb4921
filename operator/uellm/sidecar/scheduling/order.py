"""Orders of the waiting requests: their interface, those by a fixed key, and llm-d's."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.types import State, Ticket

Key = tuple[float, ...]

_QUEUED = State.QUEUED


class Order(Protocol):
    """Waiting tickets in the order of a policy."""

    def __len__(self) -> int:
        """Number of waiting tickets."""

    def add(self, ticket: Ticket, now_s: float) -> None:
        """Add a waiting ticket."""

    def reposition(self, ticket: Ticket, now_s: float) -> None:
        """Reposition a waiting ticket after its prediction changed."""

    def head(self, now_s: float) -> Ticket | None:
        """The next ticket to send. None: none for now."""

    def remove(self, ticket: Ticket, now_s: float) -> None:
        """Remove a ticket whose state has already changed."""


def earliest_deadline(ticket: Ticket) -> Key:
    """EDF, the paper's SLO-DBS: earliest deadline, then the higher priority, then arrival.

    A deadline is fixed at arrival, so a waiting request moves forward in time and nothing starves.
    """
    return ticket.deadline_s, -ticket.targets.priority, ticket.sequence


def shortest_predicted(ticket: Ticket) -> Key:
    """SJF, the paper's ODBS: fewest predicted output tokens, then arrival."""
    return ticket.length.p50, ticket.sequence


def first_come(ticket: Ticket) -> Key:
    """FCFS."""
    return (ticket.sequence,)


class Sorted:
    """An order by a key: a heap that is rebuilt when most of its entries are invalid.

    A ticket whose key changed has an entry for each key. Only the entry with the current key is valid.
    """

    def __init__(self, key: Callable[[Ticket], Key]) -> None:
        self._key = key
        self._heap: list[tuple[Key, int, Ticket]] = []
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, ticket: Ticket, now_s: float) -> None:
        """Add a waiting ticket. O(log n)."""
        heapq.heappush(self._heap, (self._key(ticket), ticket.sequence, ticket))
        self._waiting += 1

    def reposition(self, ticket: Ticket, now_s: float) -> None:
        """Add an entry with the new key. O(log n)."""
        heapq.heappush(self._heap, (self._key(ticket), ticket.sequence, ticket))

    def head(self, now_s: float) -> Ticket | None:
        """The ticket with the least key. O(log n), amortised."""
        while self._heap:
            if self._holds(self._heap[0]):
                return self._heap[0][-1]
            heapq.heappop(self._heap)
        return None

    def remove(self, ticket: Ticket, now_s: float) -> None:
        """Count it out; its entries become invalid. O(1), amortised."""
        self._waiting -= 1
        if not self._waiting:
            self._heap.clear()
        elif len(self._heap) > 64 + 4 * self._waiting:
            self._heap = [entry for entry in self._heap if self._holds(entry)]
            heapq.heapify(self._heap)

    def _holds(self, entry: tuple[Key, int, Ticket]) -> bool:
        key, _, ticket = entry
        return ticket.state is _QUEUED and not ticket.detour and key == self._key(ticket)


QUEUE_THRESHOLD = 5
KV_THRESHOLD = 0.8


class Saturation:
    """llm-d's flow control: by deadline, while the engine's queue is short and its cache is not full.

    saturation = max(waiting / 5, KV share / 0.8). Stale metrics count as saturated.
    """

    def __init__(self, view: EngineView) -> None:
        self._view = view
        self._sorted = Sorted(earliest_deadline)

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, ticket: Ticket, now_s: float) -> None:
        """Add a waiting ticket."""
        self._sorted.add(ticket, now_s)

    def reposition(self, ticket: Ticket, now_s: float) -> None:
        """Do nothing: the length does not matter."""

    def head(self, now_s: float) -> Ticket | None:
        """The next ticket, unless the engine is saturated and has work."""
        saturated = self._saturation() >= 1.0 and bool(self._view.running)
        return None if saturated else self._sorted.head(now_s)

    def remove(self, ticket: Ticket, now_s: float) -> None:
        """Remove a ticket."""
        self._sorted.remove(ticket, now_s)

    def _saturation(self) -> float:
        state = self._view.state
        if state.stale:
            return 1.0
        waiting = state.waiting + self._view.sent_since_state
        return max(waiting / QUEUE_THRESHOLD, (state.kv_used_share or 0.0) / KV_THRESHOLD)
