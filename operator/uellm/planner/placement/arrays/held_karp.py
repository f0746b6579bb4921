"""Shortest Hamiltonian paths through every subset of devices, and the least time of equal layers on each subset.

The shortest path through each subset (Held and Karp 1962, doi:10.1137/0110015), found for all subsets:

    path[{i}][i] = 0        path[S][i] = min over j in S\\{i} of hop[i][j] + path[S\\{i}][j]

With C classes of devices and N subsets this takes O(N C^2) time and O(N C) memory. For n different devices, N = 2^n
and C = n.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

from uellm.planner.placement.arrays.grid import INFINITE, Costs, Grid, Ints


class Subsets:
    """Every subset of the devices of a grid with equal layers, as codes 0..S-1.

    `used` [C, S]: devices of each class in a subset. `size` [S]: devices in a subset. `room`, `free_first`, `free_last`
    [C]: layers that fit on a device, on the first one and on the last one.
    """

    def __init__(self, grid: Grid, largest: int) -> None:
        self.grid = grid
        total = int(grid.weight[-1] * (grid.count[-1] + 1))
        self.used = np.empty((len(grid.count), total), np.int16)
        for c, (count, weight) in enumerate(zip(grid.count, grid.weight, strict=True)):
            self.used[c] = np.tile(np.repeat(np.arange(count + 1), weight), total // int(weight * (count + 1)))
        self.size = self.used.sum(axis=0, dtype=np.int16)
        by_size = np.argsort(self.size, kind="stable")
        edges = np.searchsorted(self.size[by_size], np.arange(largest + 2))
        self.by_size = [by_size[edges[size] : edges[size + 1]] for size in range(largest + 1)]
        problem = grid.problem
        layer = problem.memory[1]
        self.room = self._layers(problem.room, 0, layer)
        self.free_first = self._layers(problem.room, problem.first, layer)
        self.free_last = self._layers(problem.room, problem.last, layer)
        self.lost_first, self.lost_last = self.room - self.free_first, self.room - self.free_last
        self.layer_time = grid.time[:, -1] / grid.layers
        self.by_speed = np.argsort(self.layer_time, kind="stable")

    def _layers(self, rooms: Sequence[int], end: int, layer: int) -> Ints:
        return np.array([max(-1, min(self.grid.layers, (room - end) // layer)) for room in rooms], np.int64)

    def paths(self, *, backward: bool = False) -> Costs:
        """[C, S]: the shortest path through each subset that starts on class c (`backward`: that ends on c)."""
        hop = self.grid.hop.T if backward else self.grid.hop
        table = np.full(self.used.shape, INFINITE)
        table[np.arange(len(hop)), self.grid.weight] = 0.0
        return self._grown(table, hop, self.by_size)

    def anchored(self, last: int) -> Costs:
        """[C, S]: the shortest path through each subset from class c to a device of class `last`."""
        table = np.full(self.used.shape, INFINITE)
        table[last, self.grid.weight[last]] = 0.0
        return self._grown(table, self.grid.hop, [codes[self.used[last, codes] > 0] for codes in self.by_size])

    def ends(self, table: Costs, codes: Ints) -> tuple[Ints, Ints]:
        """First and last class of a shortest path through each subset in `codes`; `table` is that of `paths`."""
        first = last = table[:, codes].argmin(axis=0)
        rest = codes - self.grid.weight[first]
        while (rest > 0).any():
            following = (table[:, rest] + self.grid.hop[last].T).argmin(axis=0)
            unfinished = rest > 0
            last = np.where(unfinished, following, last)
            rest = np.where(unfinished, rest - self.grid.weight[last], 0)
        return first, last

    def _grown(self, table: Costs, hop: Costs, levels: list[Ints]) -> Costs:
        """Fill the table from subsets of one device upwards, in O(S C^2)."""
        for codes in levels[1:-1]:
            # The rows of one level fit in the processor's cache; those of all subsets do not.
            level = np.take(table, codes, axis=1)
            for c, weight in enumerate(self.grid.weight):
                extendable = np.flatnonzero(self.used[c, codes] < self.grid.count[c])
                if len(extendable):
                    costs = np.take(level, extendable, axis=1)
                    costs += hop[c][:, None]
                    table[c, codes[extendable] + weight] = costs.min(axis=0)
        return table

    def filled(self, codes: Ints, first: Ints | int = -1, last: Ints | int = -1) -> Costs:
        """[codes]: the least time of all layers on each subset; INFINITE if they do not fit.

        `first`, `last`: classes of the devices that hold embedding and head; -1: the end takes no room.
        """
        spare = np.maximum(self.room - 1, 0)
        left = (self.grid.layers - self.size[codes]).astype(np.float64)
        cost = np.zeros(len(codes))
        for c in self.by_speed:
            used = self.used[c, codes]
            room = (used * spare[c]).astype(np.float64)
            if self.lost_first[c]:
                room -= (first == c) * self.lost_first[c]
            if self.lost_last[c]:
                room -= (last == c) * self.lost_last[c]
            added = np.minimum(room, left)
            left -= added
            cost += (used + added) * self.layer_time[c]
            if self.room[c] < 1:
                cost[used > 0] = INFINITE
        cost[left > 0] = INFINITE
        return cost


def shortest_between(
    sets: Subsets, forward: Costs, backward: Costs, ends: tuple[int, int, int], limit: float
) -> float | None:
    """The length of the shortest path through a subset between two classes; None if it exceeds `limit`.

    `ends`: subset, first class and last class. A* (Hart, Nilsson and Raphael 1968, doi:10.1109/TSSC.1968.300136) from
    the last device; the shortest paths with one free end, `forward` and `backward` [C, S], are the lower bound.
    """
    code, first, last = ends
    weight = [int(value) for value in sets.grid.weight]
    queue, least = [(0.0, 0.0, last, code)], dict[tuple[int, int], float]()
    while queue:
        _, spent, c, remaining = heappop(queue)
        rest = remaining - weight[c]
        if rest == 0:
            return spent
        from_first = float(forward[first, rest])
        for d in np.flatnonzero(sets.used[:, rest]).tolist():
            if d == first and sets.used[d, rest] == 1 and rest != weight[d]:
                continue
            cost = spent + float(sets.grid.hop[d, c])
            bound = cost + max(from_first, float(backward[d, rest]))
            if bound <= limit and cost < least.get((d, rest), INFINITE):
                least[d, rest] = cost
                heappush(queue, (bound, cost, d, rest))
    return None
