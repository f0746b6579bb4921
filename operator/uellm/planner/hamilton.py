"""Layers that are alike: what a set of devices costs is a filling plus a shortest path, each found by itself.

The layers go to the fastest devices of a set, one at least to each; the order is the shortest Hamiltonian path
(Held and Karp 1962), for all sets at once:

    path[{i}][i] = 0        path[S][i] = min over j in S\\{i} of hop[i][j] + path[S\\{i}][j]

Only the ends bind the two together, where embedding or head take the room of a layer. Then paths are needed for each
last device that can still be part of the best, and the filling for each first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uellm.planner.grid import INFINITE, Costs, Grid, Whole

# Sets that are looked at with all their ends before any other, for a first good placement.
GLANCE = 512


@dataclass(frozen=True, slots=True)
class Paths:
    """`table[c, code]`: the least hops over the devices of a code from class c on, to the last (-1: whichever)."""

    last: int
    table: Costs


class Sets:
    """Every set of devices of a grid with layers that are alike, as codes 0.."""

    def __init__(self, grid: Grid, largest: int) -> None:
        self.grid = grid
        counts = [np.arange(count + 1) for count in grid.count]
        # The first class turns over fastest, as in a code.
        self.used = np.stack([axis.ravel(order="F") for axis in np.meshgrid(*counts, indexing="ij")]).astype(np.int32)
        self.size = self.used.sum(axis=0)
        self.by_size = [np.flatnonzero(self.size == size) for size in range(largest + 1)]
        problem = grid.problem
        layer = problem.memory[1]
        self.room = self._layers(problem.room, 0, layer)
        self.lost_first = self.room - self._layers(problem.room, problem.first, layer)
        self.lost_last = self.room - self._layers(problem.room, problem.last, layer)
        self.layer_time = grid.time[:, -1] / grid.layers
        self.by_speed = np.argsort(self.layer_time, kind="stable")

    def _layers(self, rooms: Sequence[int], end: int, layer: int) -> Whole:
        return np.array([max(-1, min(self.grid.layers, (room - end) // layer)) for room in rooms], np.int64)

    def paths(self, last: int = -1) -> Paths:
        """Shortest paths over every set; with `last` given only over those that end on that class."""
        grid = self.grid
        table = np.full((len(grid.count), len(self.size)), INFINITE)
        for c in [last] if last >= 0 else range(len(grid.count)):
            table[c, grid.weight[c]] = 0.0
        for codes in self.by_size[1:-1]:
            held = codes[self.used[last, codes] > 0] if last >= 0 else codes
            for c in range(len(grid.count)):
                free = held[self.used[c, held] < grid.count[c]]
                if len(free):
                    onward = table[:, free]
                    onward += grid.hop[c][:, None]
                    table[c, free + grid.weight[c]] = onward.min(axis=0)
        return Paths(last, table)

    def filled(self, codes: Whole, first: int = -1, last: int = -1) -> Costs:
        """The least time of all layers on each set; INFINITE where they do not fit. Ends: -1 takes no room."""
        spare = np.maximum(self.room - 1, 0)
        left = (self.grid.layers - self.size[codes]).astype(np.float64)
        cost = np.zeros(len(codes))
        for c in self.by_speed:
            used = self.used[c, codes]
            room = (used * spare[c]).astype(np.float64)
            if c == first:
                room -= self.lost_first[c]
            if c == last:
                room -= self.lost_last[c]
            taken = np.minimum(room, left)
            left -= taken
            cost += (used + taken) * self.layer_time[c]
            if self.room[c] < 1:
                cost[used > 0] = INFINITE
        cost[left > 0] = INFINITE
        return cost


@dataclass(slots=True)
class _Good:
    """Sets that cost no more than the best, with the paths over them and the class to start from."""

    paths: Paths
    codes: Whole
    firsts: Whole
    totals: Costs


class AlikeSearch:
    """One search among sets of `sizes` devices."""

    def __init__(self, grid: Grid, sizes: Sequence[int]) -> None:
        self.grid, self.sizes, self.sets = grid, sizes, Sets(grid, max(sizes))
        self.best = INFINITE
        self.good: list[_Good] = []

    def order(self, rank: Sequence[int]) -> tuple[list[int], float] | None:
        """Classes in pipeline order of the cheapest placement, and its cost; None where nothing fits.

        Of equal costs the fewest devices, then the ids' order (`rank`: by device).
        """
        sets, free = self.sets, self.sets.paths()
        codes = np.concatenate([sets.by_size[size] for size in self.sizes])
        base = sets.filled(codes) + self.grid.device * sets.size[codes] + free.table[:, codes].min(axis=0)
        codes, base = codes[base < INFINITE], base[base < INFINITE]
        able = sets.room > 0
        if not (sets.lost_first[able].any() or sets.lost_last[able].any()):
            for first in range(len(self.grid.count)):
                self._keep(free, first, codes, base - free.table[:, codes].min(axis=0) + free.table[first, codes])
        else:
            self._ends(free, codes, base)
        return self._walk(rank) if self.best < INFINITE else None

    def _ends(self, free: Paths, codes: Whole, base: Costs) -> None:
        """Where the ends lose room: every last class that can still be part of the best, then every first one."""
        self._alone()
        codes, base = codes[self.sets.size[codes] > 1], base[self.sets.size[codes] > 1]
        shortest = free.table[:, codes].min(axis=0)
        anchored: dict[int, Paths] = {}
        few = np.sort(np.argsort(base, kind="stable")[:GLANCE])
        for part in (few, np.arange(len(codes))):
            bounds = []
            for last in range(len(self.grid.count)):
                chosen = part[(base[part] <= self.best + self.grid.ties) & (self.sets.used[last, codes[part]] > 0)]
                least = self._cost(codes[chosen], last=last) + shortest[chosen]
                if len(chosen) and float(least.min()) < INFINITE:
                    bounds.append((float(least.min()), last, codes[chosen], least))
            for bound, last, held, least in sorted(bounds, key=lambda entry: entry[:2]):
                if bound > self.best + self.grid.ties:
                    break
                if last not in anchored:
                    anchored[last] = self.sets.paths(last)
                self._first(anchored[last], held[least <= self.best + self.grid.ties])

    def _alone(self) -> None:
        """Placements on one device."""
        for c in self.grid.problem.classes:
            if 1 in self.sizes and self.grid.problem.fits(c, 0, self.grid.layers):
                one = np.array([self.grid.weight[c]])
                cost = np.array([self.grid.time[c, -1] + self.grid.device])
                self._keep(_single(self.grid, c, len(self.sets.size)), c, one, cost)

    def _first(self, paths: Paths, codes: Whole) -> None:
        for first in range(len(self.grid.count)):
            held = codes[paths.table[first, codes] < INFINITE]
            self._keep(paths, first, held, self._cost(held, first, paths.last) + paths.table[first, held])

    def _cost(self, codes: Whole, first: int = -1, last: int = -1) -> Costs:
        sets = self.sets
        if (last >= 0 and sets.room[last] <= sets.lost_last[last]) or (
            first >= 0 and sets.room[first] <= sets.lost_first[first]
        ):
            return np.full(len(codes), INFINITE)
        result: Costs = sets.filled(codes, first, last) + self.grid.device * sets.size[codes]
        return result

    def _keep(self, paths: Paths, first: int, codes: Whole, totals: Costs) -> None:
        if not len(totals) or float(totals.min()) > self.best + self.grid.ties:
            return
        self.best = min(self.best, float(totals.min()))
        kept = totals <= self.best + self.grid.ties
        if kept.any() and self.best < INFINITE:
            self.good.append(_Good(paths, codes[kept], np.full(int(kept.sum()), first), totals[kept]))

    def _walk(self, rank: Sequence[int]) -> tuple[list[int], float]:
        grid, sets, budget = self.grid, self.sets, self.best + self.grid.ties
        size = min(int(sets.size[good.codes[good.totals <= budget]].min(initial=grid.most + 1)) for good in self.good)
        states: list[tuple[Paths, int, Whole, Costs]] = []
        for good in self.good:
            kept = (good.totals <= budget) & (sets.size[good.codes] == size)
            first = int(good.firsts[0])
            hops = budget - good.totals[kept] + good.paths.table[first, good.codes[kept]]
            states.append((good.paths, first, good.codes[kept], hops))
        used, order = [0] * len(grid.count), list[int]()
        while states:
            states = [state for state in states if len(state[2])]
            if not states:
                break
            chosen = min({state[1] for state in states}, key=lambda c: rank[grid.problem.members[c][used[c]]])
            order.append(chosen)
            used[chosen] += 1
            states = [onward for state in states if state[1] == chosen for onward in self._onward(state)]
        return order, self.best

    def _onward(self, state: tuple[Paths, int, Whole, Costs]) -> list[tuple[Paths, int, Whole, Costs]]:
        paths, c, codes, hops = state
        rest, result = codes - self.grid.weight[c], []
        for d in range(len(self.grid.count)):
            left = hops - self.grid.hop[c, d]
            kept = (rest > 0) & (paths.table[d, rest] <= left)
            if kept.any():
                result.append((paths, d, rest[kept], left[kept]))
        return result


def _single(grid: Grid, c: int, codes: int) -> Paths:
    table = np.full((len(grid.count), codes), INFINITE)
    table[c, grid.weight[c]] = 0.0
    return Paths(c, table)
