"""Which waiting requests can all still be on time, kept up to date request by request.

Moore-Hodgson (Management Science 15(1), 1968): go through the jobs by deadline, and whenever one would be late take
out the longest so far; no schedule of one machine has fewer late jobs. Here what is taken out is the request of least
*value*, its chance of success per engine second; with equal chances that is the longest again. Adding requests in the
order of their deadlines does exactly that; adding them as they arrive keeps a feasible set, and whoever was taken out
may be added again.

A segment tree over time holds, for a span of deadlines, the work in it, how late its latest request would be, and the
least value. So adding, removing and finding the request that gives way cost O(log of the leaves), however many
requests wait; a plan made at once costs one look at each node that has any of them below it. A deadline counts as the
start of its leaf: a request is at most `LEAF_S` timelier than the plan knows.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from math import inf

from uellm.sidecar.scheduling.types import Ticket

LEAF_S = 0.016
"""Resolution: a fraction of an engine's step with prompts in it."""

LEAVES = 8192

SPAN_S = LEAF_S * LEAVES
"""Deadlines further away than this count as this far; the plan is built anew before that matters."""

PRIORITY_RANK = 1 << 50
"""More than there will be requests: of two with the same deadline the higher priority is first."""

Entry = tuple[float, int, int, Ticket]

Place = tuple[float, float, float]
"""Deadline, engine seconds of the prompt, and value of a request."""


class _Leaf:
    """Requests whose deadlines fall into one span, by deadline and by value. Entries that left are skipped."""

    __slots__ = ("by_deadline", "by_value", "members", "work_s")

    def __init__(self) -> None:
        self.by_deadline: list[Entry] = []
        self.by_value: list[Entry] = []
        self.members = 0
        self.work_s = 0.0

    def compact(self) -> None:
        """Drop what left where it is most of the entries: sifting it out one by one costs more than looking once."""
        most = 64 + 2 * self.members
        if len(self.by_deadline) > most:
            self.by_deadline = _held(self.by_deadline)
        if len(self.by_value) > most:
            self.by_value = _held(self.by_value)


class OnTimeSet:
    """Requests in the order of their deadlines, each on time if those before it take as long as expected."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self._work_s = [0.0] * (2 * LEAVES)
        self._late_s = [-inf] * (2 * LEAVES)
        self._value = [inf] * (2 * LEAVES)
        self._leaves: dict[int, _Leaf] = {}
        self._spans: list[int] = []
        """The leaves that have members, in order."""
        self._stamp = 0
        self.members = 0

    def add(self, ticket: Ticket, deadline_s: float, work_s: float, value: float) -> None:
        """One more request: `work_s` engine seconds to be done by `deadline_s`. The set may be infeasible then."""
        index = self._index(deadline_s)
        leaf = self._leaf(index)
        by_deadline, by_value = self._enter(leaf, index, ticket, (deadline_s, work_s, value))
        heapq.heappush(leaf.by_deadline, by_deadline)
        heapq.heappush(leaf.by_value, by_value)
        self._update(index, leaf)

    def add_all(self, requests: Iterable[tuple[Ticket, Place]]) -> None:
        """As if each was added, one after the other."""
        touched: dict[int, _Leaf] = {}
        for ticket, place in requests:
            index = self._index(place[0])
            leaf = touched[index] = self._leaf(index)
            by_deadline, by_value = self._enter(leaf, index, ticket, place)
            leaf.by_deadline.append(by_deadline)
            leaf.by_value.append(by_value)
        for leaf in touched.values():
            heapq.heapify(leaf.by_deadline)
            heapq.heapify(leaf.by_value)
        self._update_all(touched)

    def remove(self, ticket: Ticket) -> None:
        """A request of the plan is in it no more."""
        index = ticket.leaf
        leaf = self._leaves[index]
        ticket.leaf = -1
        ticket.stamp = 0
        self.members -= 1
        leaf.members -= 1
        leaf.work_s -= ticket.work_s
        if leaf.members == 0:
            del self._leaves[index]
            del self._spans[bisect_left(self._spans, index)]
        else:
            leaf.compact()
        self._update(index, leaf)

    def tickets(self) -> Iterator[Ticket]:
        """All of them."""
        for leaf in self._leaves.values():
            for _, _, stamp, ticket in leaf.by_deadline:
                if ticket.stamp == stamp:
                    yield ticket

    def first(self) -> Ticket | None:
        """The request of the earliest deadline."""
        return _top(self._leaves[self._spans[0]].by_deadline)[-1] if self._spans else None

    def slack_s(self, ready_s: float) -> float:
        """How much later than `ready_s` the engine may begin and have nobody late; negative: somebody is late."""
        return -(self._late_s[1] + ready_s)

    def give_way(self, ready_s: float) -> Ticket | None:
        """The request to take out, where some would be late if the engine begins at `ready_s`; None: none would."""
        late_s, work_s = self._late_s, self._work_s
        if late_s[1] + ready_s <= 0.0:
            return None
        node = 1
        while node < LEAVES:
            node *= 2
            if late_s[node] + ready_s <= 0.0:
                ready_s += work_s[node]
                node += 1
        return self._least_valuable(node)

    def _least_valuable(self, last: int) -> Ticket:
        """The request of least value among the leaves up to this one."""
        value = self._value
        best, at = value[last], last
        node = last
        while node > 1:
            if node & 1 and value[node - 1] < best:
                best, at = value[node - 1], node - 1
            node //= 2
        while at < LEAVES:
            at = 2 * at if value[2 * at] == best else 2 * at + 1
        return _top(self._leaves[at - LEAVES].by_value)[-1]

    def _index(self, deadline_s: float) -> int:
        index = int((deadline_s - self.start_s) / LEAF_S)
        return 0 if index < 0 else index if index < LEAVES else LEAVES - 1

    def _leaf(self, index: int) -> _Leaf:
        leaf = self._leaves.get(index)
        if leaf is None:
            leaf = self._leaves[index] = _Leaf()
            insort(self._spans, index)
        return leaf

    def _enter(self, leaf: _Leaf, index: int, ticket: Ticket, place: Place) -> tuple[Entry, Entry]:
        """Count it as a member; its entries by deadline and by value."""
        deadline_s, work_s, value = place
        self.members += 1
        self._stamp += 1
        stamp, sequence = self._stamp, ticket.sequence
        ticket.leaf, ticket.stamp, ticket.work_s = index, stamp, work_s
        leaf.members += 1
        leaf.work_s += work_s
        rank = sequence - ticket.targets.priority * PRIORITY_RANK
        return (deadline_s, rank, stamp, ticket), (value, sequence, stamp, ticket)

    def _sums(self, index: int, leaf: _Leaf) -> tuple[float, float, float]:
        """Work, lateness from the clock's zero, and least value of a leaf."""
        if not leaf.members:
            return 0.0, -inf, inf
        work_s = leaf.work_s
        return work_s, work_s - (self.start_s + index * LEAF_S), _top(leaf.by_value)[0]

    def _update(self, index: int, leaf: _Leaf) -> None:
        works_s, lates_s, values = self._work_s, self._late_s, self._value
        work_s, late_s, value = self._sums(index, leaf)
        node = index + LEAVES
        works_s[node], lates_s[node], values[node] = work_s, late_s, value
        # Most of what a decision costs, so what is known of the child is not looked up, and comparisons stand where
        # `max` and `min` would do.
        while node > 1:
            sibling = node ^ 1
            if node > sibling:
                before_s = works_s[sibling]
                late_s += before_s
                if lates_s[sibling] > late_s:
                    late_s = lates_s[sibling]
                work_s = before_s + work_s
            else:
                after_s = work_s + lates_s[sibling]
                if after_s > late_s:
                    late_s = after_s
                work_s += works_s[sibling]
            if values[sibling] < value:
                value = values[sibling]
            node >>= 1
            works_s[node], lates_s[node], values[node] = work_s, late_s, value

    def _update_all(self, leaves: Mapping[int, _Leaf]) -> None:
        works_s, lates_s, values = self._work_s, self._late_s, self._value
        for index, leaf in leaves.items():
            node = index + LEAVES
            works_s[node], lates_s[node], values[node] = self._sums(index, leaf)
        nodes = {index + LEAVES for index in leaves}
        for _ in range(LEAVES.bit_length() - 1):
            nodes = {node // 2 for node in nodes}
            for node in nodes:
                left, right = 2 * node, 2 * node + 1
                before_s = works_s[left]
                works_s[node] = before_s + works_s[right]
                lates_s[node] = max(lates_s[left], before_s + lates_s[right])
                values[node] = min(values[left], values[right])


def _held(heap: list[Entry]) -> list[Entry]:
    """A heap of the entries that still hold."""
    heap = [entry for entry in heap if entry[3].stamp == entry[2]]
    heapq.heapify(heap)
    return heap


def _top(heap: list[Entry]) -> Entry:
    """The first entry that still holds. The heap has one."""
    entry = heap[0]
    while entry[3].stamp != entry[2]:
        heapq.heappop(heap)
        entry = heap[0]
    return entry
