"""The orders in which waiting requests can be taken: what they have in common, and those by a fixed key."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.types import State, Ticket

Key = tuple[float, ...]


class Order(Protocol):
    """Waiting tickets in some order."""

    def __len__(self) -> int:
        """Tickets that wait."""

    def add(self, ticket: Ticket, now_s: float) -> None:
        """One more waits."""

    def reposition(self, ticket: Ticket, now_s: float) -> None:
        """It waits still, and its predicted length is another: to be put where it belongs now."""

    def head(self, now_s: float) -> Ticket | None:
        """The next to be taken; None: there is none for now."""

    def remove(self, ticket: Ticket, now_s: float) -> None:
        """It waits no more; its state has changed already."""


def earliest_deadline(ticket: Ticket) -> Key:
    """EDF, the paper's SLO-DBS: earliest deadline, then the higher priority, then arrival.

    A deadline is fixed at arrival, so waiting alone moves a request forward: nothing starves.
    """
    return ticket.deadline_s, -ticket.targets.priority, ticket.sequence


def shortest_predicted(ticket: Ticket) -> Key:
    """SJF, the paper's ODBS: fewest predicted output tokens, then arrival."""
    return ticket.length.p50, ticket.sequence


def first_come(ticket: Ticket) -> Key:
    """FCFS."""
    return (ticket.sequence,)


class Sorted:
    """An order by a key: a heap, rebuilt when most of its entries have left. One whose key has changed has an entry by
    each; that by its present key counts."""

    def __init__(self, key: Callable[[Ticket], Key]) -> None:
        self._key = key
        self._heap: list[tuple[Key, int, Ticket]] = []
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, ticket: Ticket, now_s: float) -> None:
        """One more waits. O(log n)."""
        heapq.heappush(self._heap, (self._key(ticket), ticket.sequence, ticket))
        self._waiting += 1

    def reposition(self, ticket: Ticket, now_s: float) -> None:
        """Its predicted length is another. O(log n)."""
        heapq.heappush(self._heap, (self._key(ticket), ticket.sequence, ticket))

    def head(self, now_s: float) -> Ticket | None:
        """The next to be taken. O(log n), amortised."""
        while self._heap and not self._holds(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][-1] if self._heap else None

    def remove(self, ticket: Ticket, now_s: float) -> None:
        """It waits no more. O(1), amortised."""
        self._waiting -= 1
        if len(self._heap) > 64 + 4 * self._waiting:
            self._heap = [entry for entry in self._heap if self._holds(entry)]
            heapq.heapify(self._heap)

    def _holds(self, entry: tuple[Key, int, Ticket]) -> bool:
        key, _, ticket = entry
        return ticket.state is State.QUEUED and key == self._key(ticket)


QUEUE_THRESHOLD = 5
KV_THRESHOLD = 0.8


class Saturation:
    """llm-d's flow control: by deadline, while the engine's own queue is short and its cache not full.

    saturation = max(waiting / 5, KV share / 0.8); figures that are old count as saturated.
    """

    def __init__(self, view: EngineView) -> None:
        self._view = view
        self._sorted = Sorted(earliest_deadline)

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, ticket: Ticket, now_s: float) -> None:
        """One more waits."""
        self._sorted.add(ticket, now_s)

    def reposition(self, ticket: Ticket, now_s: float) -> None:
        """Its length does not matter."""

    def head(self, now_s: float) -> Ticket | None:
        """The next to be taken, unless the engine is saturated and has work."""
        saturated = self._saturation() >= 1.0 and bool(self._view.running)
        return None if saturated else self._sorted.head(now_s)

    def remove(self, ticket: Ticket, now_s: float) -> None:
        """It waits no more."""
        self._sorted.remove(ticket, now_s)

    def _saturation(self) -> float:
        state = self._view.state
        if state.stale:
            return 1.0
        waiting = state.waiting + self._view.sent_since_state
        return max(waiting / QUEUE_THRESHOLD, (state.kv_used_share or 0.0) / KV_THRESHOLD)
