"""A set of waiting requests that can all still be on time, updated for each request.

The method is Moore-Hodgson (Management Science 15(1), 1968): go through the jobs by deadline, and whenever a job would
be late, remove the longest so far. No schedule of one machine has fewer late jobs. Here the request of least *value*,
its chance of success for each engine second, is removed. With equal chances that is again the longest. Adding requests
in the order of their deadlines gives exactly that result. Adding them as they arrive keeps a feasible set, and a
removed request may be added again.

A segment tree over time stores for each span of deadlines its work, the lateness of its latest request and its least
value. Adding, removing, and finding the request to remove cost O(log of the leaves), for any number of requests.
Building the set at once visits each tree node above a request once. A deadline is rounded down to the start of its
leaf, so the set may take a request to be due up to `LEAF_S` too early.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from math import inf

from uellm.sidecar.scheduling.entries import Entry, compact
from uellm.sidecar.scheduling.types import Ticket

LEAF_S = 0.016
"""Resolution: a fraction of an engine step with prompts."""

LEAVES = 8192

SPAN_S = LEAF_S * LEAVES
"""Deadlines further away than this count as this far. The set is rebuilt before that matters."""

PRIORITY_RANK = 1 << 50
"""More than the number of requests ever, so that the higher priority is first among equal deadlines."""

Place = tuple[float, float, float]
"""Deadline, engine seconds of the prompt, and value of a request."""


class _Leaf:
    """Requests whose deadlines fall into one span, by deadline and by value. Invalid entries are skipped."""

    __slots__ = ("by_deadline", "by_value", "members", "work_s")

    def __init__(self) -> None:
        self.by_deadline: list[Entry] = []
        self.by_value: list[Entry] = []
        self.members = 0
        self.work_s = 0.0

    def compact(self) -> None:
        """Let memory follow the members."""
        compact(self.by_deadline, self.members)
        compact(self.by_value, self.members)


class OnTimeSet:
    """Requests by deadline. Each is on time if those before it take as long as expected."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self._work_s = [0.0] * (2 * LEAVES)
        self._late_s = [-inf] * (2 * LEAVES)
        self._value = [inf] * (2 * LEAVES)
        self._leaves: dict[int, _Leaf] = {}
        self._spans: list[int] = []
        """Indices of the leaves with members, in order."""
        self._stamp = 0
        self.members = 0

    def add(self, ticket: Ticket, deadline_s: float, work_s: float, value: float) -> None:
        """Add a request with `work_s` engine seconds, due at `deadline_s`. The set may become infeasible."""
        index = self._index(deadline_s)
        leaf = self._leaf(index)
        by_deadline, by_value = self._enter(leaf, index, ticket, (deadline_s, work_s, value))
        heapq.heappush(leaf.by_deadline, by_deadline)
        heapq.heappush(leaf.by_value, by_value)
        self._update(index, leaf)

    def add_all(self, requests: Iterable[tuple[Ticket, Place]]) -> None:
        """Add requests, with the same result as one `add` for each."""
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
        """Remove a member."""
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
        """All members."""
        for leaf in self._leaves.values():
            for _, _, stamp, ticket in leaf.by_deadline:
                if ticket.stamp == stamp:
                    yield ticket

    def first(self) -> Ticket | None:
        """The member with the earliest deadline."""
        return _top(self._leaves[self._spans[0]].by_deadline)[-1] if self._spans else None

    def slack_s(self, ready_s: float) -> float:
        """How long after `ready_s` the engine may begin without a late request. Negative: a request is late."""
        return -(self._late_s[1] + ready_s)

    def give_way(self, ready_s: float) -> Ticket | None:
        """The request to remove if any is late when the engine begins at `ready_s`. None: none is late."""
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
        """The request of least value in the leaves up to this one."""
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
        """Count a member. Returns its entries by deadline and by value."""
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
        if self.members <= leaf.members:  # alone: the sums of all other leaves are those of none
            while node > 1:
                node >>= 1
                works_s[node], lates_s[node], values[node] = work_s, late_s, value
            return
        # This loop is most of the cost of a decision. It therefore keeps the child's values in variables, and compares
        # instead of calling `max` and `min`.
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


def _top(heap: list[Entry]) -> Entry:
    """The first valid entry. The heap has one."""
    entry = heap[0]
    while entry[3].stamp != entry[2]:
        heapq.heappop(heap)
        entry = heap[0]
    return entry
