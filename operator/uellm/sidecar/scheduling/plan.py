"""Which waiting requests can all still be on time, kept up to date request by request.

Moore-Hodgson (Management Science 15(1), 1968): go through the jobs by deadline, and whenever one would be late take
out the longest so far; no schedule of one machine has fewer late jobs. Here what is taken out is the request of least
*value*, its chance of success per engine second; with equal chances that is the longest again. Adding requests in the
order of their deadlines does exactly that; adding them as they arrive keeps a feasible set, and whoever was taken out
may be added again.

A segment tree over time holds, for a span of deadlines, the work in it, how late its latest request would be, and the
least value. So adding, removing and finding the request that gives way cost O(log of the leaves), however many
requests wait. A deadline counts as the start of its leaf: a request is at most `LEAF_S` timelier than the plan knows.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
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


class _Leaf:
    """Requests whose deadlines fall into one span, by deadline and by value. Entries that left are skipped."""

    __slots__ = ("by_deadline", "by_value", "members", "work_s")

    def __init__(self) -> None:
        self.by_deadline: list[Entry] = []
        self.by_value: list[Entry] = []
        self.members = 0
        self.work_s = 0.0


class Plan:
    """Requests in the order of their deadlines, each on time if those before it take as long as expected."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self._work_s = [0.0] * (2 * LEAVES)
        self._late_s = [-inf] * (2 * LEAVES)
        self._value = [inf] * (2 * LEAVES)
        self._leaves: dict[int, _Leaf] = {}
        self._stamp = 0
        self.members = 0

    def add(self, ticket: Ticket, deadline_s: float, work_s: float, value: float) -> None:
        """One more request: `work_s` engine seconds to be done by `deadline_s`. The set may be infeasible then."""
        index = min(max(int((deadline_s - self.start_s) / LEAF_S), 0), LEAVES - 1)
        leaf = self._leaves.get(index)
        if leaf is None:
            leaf = self._leaves[index] = _Leaf()
        self._stamp += 1
        self.members += 1
        ticket.leaf, ticket.stamp, ticket.work_s = index, self._stamp, work_s
        rank = ticket.sequence - ticket.targets.priority * PRIORITY_RANK
        heapq.heappush(leaf.by_deadline, (deadline_s, rank, self._stamp, ticket))
        heapq.heappush(leaf.by_value, (value, ticket.sequence, self._stamp, ticket))
        leaf.members += 1
        leaf.work_s += work_s
        self._update(index, leaf)

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
        self._update(index, leaf)

    def tickets(self) -> Iterator[Ticket]:
        """All of them."""
        for leaf in self._leaves.values():
            for _, _, stamp, ticket in leaf.by_deadline:
                if ticket.stamp == stamp:
                    yield ticket

    def first(self) -> Ticket | None:
        """The request of the earliest deadline."""
        if self.members == 0:
            return None
        node = 1
        while node < LEAVES:
            node = 2 * node if self._value[2 * node] < inf else 2 * node + 1
        return _top(self._leaves[node - LEAVES].by_deadline)[-1]

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

    def _update(self, index: int, leaf: _Leaf) -> None:
        work_s, late_s, value = self._work_s, self._late_s, self._value
        node = index + LEAVES
        if leaf.members:
            work_s[node] = leaf.work_s
            late_s[node] = leaf.work_s - (self.start_s + index * LEAF_S)
            value[node] = _top(leaf.by_value)[0]
        else:
            work_s[node], late_s[node], value[node] = 0.0, -inf, inf
        node //= 2
        # Conditional expressions where `max` and `min` would do: this loop is most of what a decision costs.
        while node:
            left, right = 2 * node, 2 * node + 1
            before_s = work_s[left]
            work_s[node] = before_s + work_s[right]
            early, late = late_s[left], before_s + late_s[right]
            late_s[node] = early if early > late else late
            worse, better = value[left], value[right]
            value[node] = worse if worse < better else better
            node //= 2


def _top(heap: list[Entry]) -> Entry:
    """The first entry that still holds. The heap has one."""
    while heap[0][-1].stamp != heap[0][2]:
        heapq.heappop(heap)
    return heap[0]
