"""What no placement can beat: walks over devices that may come back to one, for a price.

Dropping the rule that a device is used once leaves a shortest walk, solved for every number of stages, class and
position at once. Using more devices of a class than there are costs `price` each, and what the devices there are
would cost is given back (a Lagrangian): for any prices >= 0 that is a lower bound, and a few subgradient steps make
it a close one. The same table bounds every partial placement of the exact search (Christofides, Mingozzi and Toth
1981, state-space relaxation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uellm.planner.placement.arrays.grid import INFINITE, Costs, Grid, Ints, window_min


@dataclass(frozen=True, slots=True)
class PrefixBounds:
    """For prices: `before[m, c, a]` the least of layers 0..a on m devices and the hop to c; `whole[m]` of everything.

    Prices are in both; `returned` is what all devices' prices add up to.
    """

    price: Costs
    returned: float
    before: Costs
    whole: Costs

    def bound(self, size: int) -> float:
        """No placement on so many devices costs less."""
        return float(self.whole[size]) - self.returned


class Relaxation:
    """The relaxation of one problem; `bound` limits the time of every stage with the hop after it."""

    def __init__(self, grid: Grid, most: int, bound: float | None = None) -> None:
        self.grid, self.most, self.bound = grid, most, bound
        classes, positions = len(grid.count), np.arange(grid.layers + 1)
        self.fits_last = grid.fits_last if bound is None else grid.fits_last_within(bound)
        reach = grid.reach[:, None, :] if bound is None else grid.within(bound)
        # Of a stage that ends at a: where it may start at the earliest, not being the first stage.
        earliest = np.empty(reach.shape, np.int64)
        for row, ends in zip(earliest.reshape(-1, grid.layers + 1), reach.reshape(-1, grid.layers + 1), strict=True):
            row[:] = np.searchsorted(np.maximum.accumulate(ends[1:]), positions) + 1
        self.reach, self.start = reach, np.minimum(earliest, positions)
        self.length = np.maximum(positions - earliest, 0)
        self.barred = np.diag(np.where(grid.count > 1, 0.0, INFINITE)) if classes else np.zeros((0, 0))

    def prefix_bounds(self, price: Costs) -> PrefixBounds:
        """The table for these prices."""
        grid, classes, width = self.grid, len(self.grid.count), self.grid.layers + 1
        before = np.full((self.most + 1, classes, width), INFINITE)
        whole = np.full(self.most + 1, INFINITE)
        before[0, :, 0] = 0.0
        fee = grid.device + price
        for size in range(1, self.most + 1):
            whole[size] = self._close(before[size - 1], fee).min()
            if size < self.most:
                before[size] = self._extend(before[size - 1], fee, first=size == 1).min(axis=0)
        return PrefixBounds(price, float(price @ grid.count), before, whole)

    def visits(self, table: PrefixBounds, size: int) -> Ints:
        """By class: how often the best walk on so many devices comes to it."""
        fee = self.grid.device + table.price
        visited = np.zeros(len(self.grid.count), np.int64)
        closed = self._close(table.before[size - 1], fee)
        c, a = divmod(int(closed.argmin()), closed.shape[1])
        visited[c] += 1
        for left in range(size - 1, 0, -1):
            c, a = self._previous(table.before[left - 1], c, a, fee, first=left == 1)
            visited[c] += 1
        return visited

    def _close(self, before: Costs, fee: Costs) -> Costs:
        """By class and start of the last stage."""
        time = self.grid.time
        result: Costs = np.where(self.fits_last, before + time[:, -1:] - time, INFINITE) + fee[:, None]
        return result

    def _extend(self, before: Costs, fee: Costs, *, first: bool) -> Any:
        """By class, next class and end: a stage on the class, and the hop."""
        grid, classes, width = self.grid, len(self.grid.count), self.grid.layers + 1
        if first:
            begun = np.where(np.arange(width) <= self.reach[:, :, :1], 0.0, INFINITE)
            begun[:, :, 0] = INFINITE
        else:
            spent = before - grid.time
            if self.bound is None:
                begun = window_min(spent[:, :, None], self.start[:, 0], self.length[:, 0])[:, None, :, 0]
            else:
                flat = np.repeat(spent, classes, axis=0)[:, :, None]
                shape = (classes * classes, width)
                begun = window_min(flat, self.start.reshape(shape), self.length.reshape(shape))
                begun = begun.reshape(classes, classes, width)
        return begun + (grid.time + fee[:, None])[:, None, :] + (grid.hop + self.barred)[:, :, None]

    def _previous(self, before: Costs, c: int, a: int, fee: Costs, *, first: bool) -> tuple[int, int]:
        """The class before c, and the start of its stage, of a best walk whose stage on c starts at a."""
        time, hop = self.grid.time, (self.grid.hop + self.barred)[:, c]
        best = (INFINITE, 0, 0)
        for d in range(len(time)):
            if first:
                options = before[d, :1] if self.reach[d, c if self.reach.shape[1] > 1 else 0, 0] >= a else before[d, :0]
                begin = 0
            else:
                begin = int(self.start[d, c if self.start.shape[1] > 1 else 0, a])
                options = before[d, begin:a] - time[d, begin:a]
            if len(options):
                at = int(options.argmin())
                best = min(best, (float(options[at] + time[d, a] + fee[d] + hop[d]), d, begin + at))
        return best[1], best[2]


def tightened(relaxation: Relaxation, sizes: Sequence[int], above: float, rounds: int) -> PrefixBounds:
    """The table of the best prices that so many subgradient steps find; `above`: the cost of a known placement."""
    grid = relaxation.grid
    best = table = relaxation.prefix_bounds(_opening_prices(grid))
    plain = relaxation.prefix_bounds(np.zeros(len(grid.count)))
    if _least(plain, sizes) > _least(best, sizes):
        best = table = plain
    reluctance = 1.0
    for _ in range(rounds):
        size = min(sizes, key=table.bound)
        gap = above - table.bound(size)
        if not 0 < gap < INFINITE:
            break
        surplus = (relaxation.visits(table, size) - grid.count).astype(np.float64)
        surplus[(surplus < 0) & (table.price <= 0)] = 0.0
        norm = float(surplus @ surplus)
        if norm == 0:
            break
        table = relaxation.prefix_bounds(np.maximum(0.0, table.price + reluctance * gap / norm * surplus))
        if _least(table, sizes) > _least(best, sizes):
            best = table
        else:
            reluctance *= 0.7
    return best


def _least(table: PrefixBounds, sizes: Sequence[int]) -> float:
    return min(table.bound(size) for size in sizes)


def _opening_prices(grid: Grid) -> Costs:
    """What a device earns against the slowest one that a fractional filling of the fastest devices still needs."""
    problem = grid.problem
    rate = grid.time[:, -1] / problem.work[-1]
    order = np.argsort(rate, kind="stable")
    room = np.maximum(0, np.array([float(value) for value in problem.room]))
    needed = np.cumsum(room[order] * grid.count[order]) >= float(problem.need(0, problem.layers))
    marginal = rate[order[int(needed.argmax())]] if needed.any() else rate.max()
    share = np.minimum(1.0, room / float(problem.memory[-1]))
    result: Costs = np.maximum(0.0, (marginal - rate) * problem.work[-1] * share)
    return result
