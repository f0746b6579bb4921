"""Entries of tickets in heaps. One is valid while its ticket has its stamp; invalid ones stay until they are met."""

from __future__ import annotations

import heapq

from uellm.sidecar.scheduling.types import Ticket

Entry = tuple[float, int, int, Ticket]
"""What the heap sorts by, the ticket's sequence, its stamp when the entry was added, and the ticket."""


def compact(heap: list[Entry], tickets: int) -> None:
    """Drop invalid entries when they are the majority, so that memory follows the number of tickets. O(1), amortised.

    Removing them one by one would cost more.
    """
    if len(heap) > 64 + 2 * tickets:
        heap[:] = [entry for entry in heap if entry[3].stamp == entry[2]]
        heapq.heapify(heap)
