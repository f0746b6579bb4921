"""The exact search for layers of any size: dynamic programming from the last stage to the first, with pruning.

A state is (subset of devices used, class of the first of them, first layer a). Its value is the least cost of layers
a..L-1 on exactly those devices. All states with the same number of devices form a level and are extended together. A
state is pruned if its Lagrangian bound (lagrangian.py) exceeds the cost of a known placement. Interchangeable devices
are counted, not named. Of states that differ only by an exchange of twin classes, one is kept.

For S subsets of C classes and L layers, all levels take O(S C (C + log L) L) time at most, and O(S C^2 L log L) with a
bound on the stages' times. If a level has too many states, the least promising are dropped. The least bound of a
dropped state is remembered, so the result has a valid lower bound.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from uellm.planner.placement.arrays.grid import INFINITE, Costs, Grid, Ints, window_min
from uellm.planner.placement.arrays.lagrangian import PrefixBounds
from uellm.planner.placement.arrays.reachability import Positions

CHUNK_CELLS = 1 << 16


@dataclass(frozen=True, slots=True)
class Level:
    """The states with one number of devices: K subsets, C classes, A layer positions."""

    codes: Ints
    """[K]: subsets, ascending."""
    low: int
    """The first of the layer positions."""
    values: Costs
    """[C, A, K]: least cost by first class, position a - low, and subset."""


@dataclass(slots=True)
class FrontierResult:
    """What a search found."""

    levels: dict[int, Level] = field(default_factory=dict)
    """By number of devices."""
    best: dict[int, float] = field(default_factory=dict)
    """By number of devices: the least cost of a placement."""
    dropped: float = INFINITE
    """The least bound of a dropped state: no placement through dropped states costs less."""
    cells: int = 0
    """Values computed, over all levels."""


@dataclass(frozen=True, slots=True)
class FrontierLimits:
    """How far a search goes."""

    level_cells: int
    """The most values kept per level."""
    sizes: tuple[int, ...]
    """Allowed numbers of devices."""


class Frontier:
    """One search.

    `prefixes`: bounds to prune by. `bound`: the most time of a stage and its hop. `before` [C, S]: the most layers
    that a subset can hold before a stage on class c (reachability.py).
    """

    def __init__(
        self,
        grid: Grid,
        prefixes: PrefixBounds,
        limits: FrontierLimits,
        bound: float | None = None,
        before: Positions | None = None,
    ) -> None:
        self.grid, self.prefixes, self.limits, self.bound, self.before = grid, prefixes, limits, bound, before
        self.reach = grid.reach[:, None, :] if bound is None else grid.within(bound)
        self.fits_last = grid.fits_last if bound is None else grid.fits_last_within(bound)

    def run(self, above: float) -> FrontierResult:
        """Search for placements that cost no more than `above`."""
        outcome, largest = FrontierResult(), max(self.limits.sizes)
        level: Level | None = None
        for size in range(1, largest + 1):
            level = self._next(level, size, above, outcome)
            if level is None:
                break
            outcome.levels[size] = level
            outcome.cells += level.values.size
            if level.low == 0 and size in self.limits.sizes:
                cost = float(level.values[:, 0].min())
                if cost < INFINITE:
                    outcome.best[size] = cost
                    above = min(above, cost)
        return outcome

    def _next(self, level: Level | None, size: int, above: float, outcome: FrontierResult) -> Level | None:
        onward = self._onward(size)
        finite = np.flatnonzero((onward < INFINITE).any(axis=0))
        if not len(finite):
            return None
        low, high = int(finite[0]), int(finite[-1])
        pending = _PendingStates()
        # A finite limit, so that INFINITE exceeds it.
        limit = min(above + self.grid.tolerance, sys.float_info.max)
        if level is None:
            found = np.where(self.fits_last, self.grid.time[:, -1:] - self.grid.time, INFINITE) + self.grid.device_cost
            self._keep(pending, np.zeros(1, np.int64), found[:, low : high + 1, None], low, onward, limit)
        else:
            per_code = level.values.shape[0] * level.values.shape[1]
            step = max(1, CHUNK_CELLS // per_code)
            for start in range(0, len(level.codes), step):
                codes = level.codes[start : start + step]
                found = self._extended(level, slice(start, start + step), low, high)
                self._keep(pending, codes, found, low, onward, limit)
        return pending.level(self.grid, low, self.limits.level_cells, outcome)

    def _onward(self, size: int) -> Costs:
        """[C, L + 1]: a lower bound on the cost of the stages before a state with `size` devices."""
        before = self.prefixes.before
        choices = [before[n - size] for n in self.limits.sizes if n >= size]
        result: Costs = np.minimum.reduce(choices)
        return result

    def _extended(self, level: Level, part: slice, low: int, high: int) -> Costs:
        """[C, high - low + 1, K]: the least cost with one more stage in front, by its class and start."""
        grid, values = self.grid, level.values[:, :, part]
        classes, width = values.shape[0], values.shape[1]
        time = grid.time[:, level.low : level.low + width]
        out = np.arange(low, high + 1)
        start = np.maximum(out + 1 - level.low, 0)
        ends = np.minimum(self.reach[:, :, low : high + 1] - level.low, width - 1)
        length = ends - start + 1
        start = np.broadcast_to(np.minimum(start, width - 1), length.shape)
        if self.bound is None:
            best = np.full((classes, width, values.shape[2]), INFINITE)
            for d in range(classes):
                np.minimum(best, values[d][None] + grid.hop[:, d, None, None], out=best)
            best += time[:, :, None]
            found = window_min(best, start[:, 0], length[:, 0])
        else:
            found = np.full((classes, len(out), values.shape[2]), INFINITE)
            for d in range(classes):
                onward = values[d][None] + (grid.hop[:, d, None] + time)[:, :, None]
                np.minimum(found, window_min(onward, start[:, d], length[:, d]), out=found)
        found += (grid.device_cost - grid.time[:, low : high + 1])[:, :, None]
        result: Costs = found
        return result

    def _keep(self, pending: _PendingStates, codes: Ints, found: Costs, low: int, onward: Costs, limit: float) -> None:
        """Collect the states that are allowed and that no bound prunes."""
        grid, price = self.grid, self.prefixes.price
        used = codes // grid.weight[:, None] % (grid.count[:, None] + 1)
        left = (grid.count[:, None] - used).astype(np.float64)
        # The prices of the devices left. A complete placement is bounded by its own cost.
        returned = price @ left - price[:, None]
        least = found + onward[:, low : low + found.shape[1], None]
        least -= returned[:, None, :]
        if low == 0:
            least[:, 0] = found[:, 0]
        allowed = left > 0
        least += np.where(allowed, 0.0, INFINITE)[:, None, :]
        if self.before is not None:
            rest = int(grid.weight @ grid.count) - codes - grid.weight[:, None]
            most = np.take_along_axis(self.before, np.where(allowed, rest, 0), axis=1)
            least[np.arange(low, low + found.shape[1])[None, :, None] > most[:, None, :]] = INFINITE
        found[least > limit] = INFINITE
        bounds = least.min(axis=1)
        for c in range(len(grid.count)):
            alive = np.flatnonzero(bounds[c] <= limit)
            if len(alive):
                pending.add(codes[alive] + grid.weight[c], c, found[c][:, alive], bounds[c][alive])


class _PendingStates:
    """The states of the next level, while they are collected."""

    def __init__(self) -> None:
        self.codes: list[Ints] = []
        self.classes: list[Ints] = []
        self.values: list[Costs] = []
        self.bounds: list[Costs] = []

    def add(self, codes: Ints, c: int, values: Costs, bounds: Costs) -> None:
        self.codes.append(codes)
        self.classes.append(np.full(len(codes), c, np.int64))
        self.values.append(values)
        self.bounds.append(bounds)

    def level(self, grid: Grid, low: int, most_cells: int, outcome: FrontierResult) -> Level | None:
        """The level: equal states merged, and the least promising dropped if there are too many."""
        if not self.codes:
            return None
        codes, classes = np.concatenate(self.codes), np.concatenate(self.classes)
        values, bounds = np.concatenate(self.values, axis=1), np.concatenate(self.bounds)
        if grid.twins:
            codes, classes = canonical_order(grid, codes, classes)
        unique, index = np.unique(codes, return_inverse=True)
        most = max(1, most_cells // (len(grid.count) * values.shape[0]))
        if len(unique) > most:
            promise = np.full(len(unique), INFINITE)
            np.minimum.at(promise, index, bounds)
            kept = np.sort(np.argsort(promise, kind="stable")[:most])
            lost = np.ones(len(unique), np.bool_)
            lost[kept] = False
            outcome.dropped = min(outcome.dropped, float(promise[lost].min()))
            chosen = ~lost[index]
            codes, classes, values = codes[chosen], classes[chosen], values[:, chosen]
            unique, index = np.unique(codes, return_inverse=True)
        table = np.full((len(grid.count), values.shape[0], len(unique)), INFINITE)
        scatter(table, classes, index, values, np.minimum)
        return Level(unique, low, table)


def scatter(table: Any, of_class: Ints, index: Ints, values: Any, merge: np.ufunc) -> None:
    """Write columns into `table[class, :, index]`; `merge` combines columns with the same class and index."""
    classes, codes = table.shape[0], table.shape[2]
    key = of_class * codes + index
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    least = values[:, order]
    if len(starts) < len(key):
        least = merge.reduceat(least, starts, axis=1)
    c, k = key[starts] // codes, key[starts] % codes
    edges = np.searchsorted(c, np.arange(classes + 1))
    for d in range(classes):
        part = slice(edges[d], edges[d + 1])
        table[d][:, k[part]] = least[:, part]


def canonical_order(grid: Grid, codes: Ints, classes: Ints) -> tuple[Ints, Ints]:
    """The canonical form of states that differ only by an exchange of twin classes: the most used class comes first.

    Returns the subset and the class of the first stage of each state after the exchange.
    """
    codes, classes = codes.copy(), classes.copy()
    for group in grid.twins:
        members = np.array(group)
        weights = grid.weight[members]
        used = codes[:, None] // weights % (grid.count[members] + 1)
        marked = 2 * used + (classes[:, None] == members)
        order = np.argsort(-marked, axis=1, kind="stable")
        ranked = np.take_along_axis(marked, order, axis=1)
        codes += ((ranked // 2 - used) * weights).sum(axis=1)
        heads = ranked % 2 == 1
        touched = heads.any(axis=1)
        classes[touched] = members[heads[touched].argmax(axis=1)]
    return codes, classes
