"""The exact search: the cheapest placements by number of devices, grown from the last stage to the first.

A state is (devices used, class of the first of them, first layer a); its value the least cost of layers a.. on
exactly those devices. States that cannot become part of a placement as cheap as a known one are pruned
(lagrangian.py); the others with the same number of devices are worked on together. Interchangeable devices are
counted, not named, and nodes that are built alike are put in order, so that of states that differ by an exchange one
is kept.

Beyond a number of states per level the least promising are dropped all the same; what they could have led to at best
is remembered, so that the answer comes with a bound that holds.
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
    """States of one number of devices: `values[c, a - low, k]` of code `codes[k]`, ascending."""

    codes: Ints
    low: int
    values: Costs


@dataclass(slots=True)
class FrontierResult:
    """What a search found: levels by number of devices, the least cost of each, and what was dropped at best."""

    levels: dict[int, Level] = field(default_factory=dict)
    best: dict[int, float] = field(default_factory=dict)
    dropped: float = INFINITE
    cells: int = 0


@dataclass(frozen=True, slots=True)
class FrontierLimits:
    """The most cells (state times position) kept of a level and of all; more devices than `most` are not tried."""

    level_cells: int
    sizes: tuple[int, ...]


class Frontier:
    """One search. `prefixes`: the bounds to prune by; `bound`: the most time of a stage.

    `before[c, code]`: how many layers the devices of a code can take before a stage on c at most (reachability.py).
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
        # Finite, so that what is not allowed at all exceeds it.
        limit = min(above + self.grid.tolerance, sys.float_info.max)
        if level is None:
            found = np.where(self.fits_last, self.grid.time[:, -1:] - self.grid.time, INFINITE) + self.grid.device
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
        """By class and position: the least that is still to come before a state of so many devices."""
        before = self.prefixes.before
        choices = [before[n - size] for n in self.limits.sizes if n >= size]
        result: Costs = np.minimum.reduce(choices)
        return result

    def _extended(self, level: Level, part: slice, low: int, high: int) -> Costs:
        """By class, position low..high and code: the least with a stage on the class in front."""
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
        found += (grid.device - grid.time[:, low : high + 1])[:, :, None]
        result: Costs = found
        return result

    def _keep(self, pending: _PendingStates, codes: Ints, found: Costs, low: int, onward: Costs, limit: float) -> None:
        """Add to the columns what is allowed and may still become good enough."""
        grid, price = self.grid, self.prefixes.price
        used = codes // grid.weight[:, None] % (grid.count[:, None] + 1)
        left = (grid.count[:, None] - used).astype(np.float64)
        # What the devices that are left would pay; a complete placement is bounded by its own cost.
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
    """The states of the next level while they are collected."""

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
        """The level, with equal states merged and the least promising dropped where there are too many."""
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
    """Put columns into `table[class, :, index]`; those that meet in one place are merged."""
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
    """Of states that an exchange of whole twin classes turns into one another the one with the fullest first.

    The code in mixed radix and the class of the first stage, as they are after the exchange.
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
