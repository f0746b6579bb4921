"""Lower bounds on the cost of a placement, by Lagrangian relaxation (Fisher 1981, doi:10.1287/mnsc.27.1.1).

The relaxed constraint is that a class has a limited number of devices. Without it, a placement is a shortest walk over
classes that may visit a class too often; dynamic programming solves it for every number of stages, class and layer
position. Each visit of a class costs a price (its multiplier), and `price @ count` is subtracted from the total. For
all prices >= 0 this is a lower bound. Subgradient steps raise it.

The same tables bound every partial placement of the exact search, as state-space relaxation does (Christofides,
Mingozzi and Toth 1981). One table for up to n stages, C classes and L layers takes O(n C (C + log L) L) time without a
bound on the stages' times, and O(n C^2 L log L) with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uellm.planner.placement.arrays.grid import INFINITE, Costs, Grid, Ints, window_min


@dataclass(frozen=True, slots=True)
class PrefixBounds:
    """Least costs of the relaxed problem for one vector of prices, for up to n stages."""

    price: Costs
    """[C]: Lagrange multipliers, >= 0."""
    returned: float
    """price @ count: what a bound on a whole placement subtracts."""
    before: Costs
    """[n + 1, C, L + 1]: least cost of layers 0..a-1 on m devices and the hop to class c, prices included."""
    whole: Costs
    """[n + 1]: least cost of all layers on m devices, prices included."""

    def bound(self, size: int) -> float:
        """A lower bound on the cost of any placement on `size` devices."""
        return float(self.whole[size]) - self.returned


class Relaxation:
    """The relaxation of one problem. `bound`: the most time that a stage and its hop may take."""

    def __init__(self, grid: Grid, most: int, bound: float | None = None) -> None:
        self.grid, self.most, self.bound = grid, most, bound
        classes, positions = len(grid.count), np.arange(grid.layers + 1)
        self.fits_last = grid.fits_last if bound is None else grid.fits_last_within(bound)
        reach = grid.reach[:, None, :] if bound is None else grid.within(bound)
        # The earliest start of a stage that ends at a and is not the first.
        earliest = np.empty(reach.shape, np.int64)
        for row, ends in zip(earliest.reshape(-1, grid.layers + 1), reach.reshape(-1, grid.layers + 1), strict=True):
            row[:] = np.searchsorted(np.maximum.accumulate(ends[1:]), positions) + 1
        self.reach, self.start = reach, np.minimum(earliest, positions)
        self.length = np.maximum(positions - earliest, 0)
        self.barred = np.diag(np.where(grid.count > 1, 0.0, INFINITE)) if classes else np.zeros((0, 0))

    def prefix_bounds(self, price: Costs) -> PrefixBounds:
        """The least costs for these prices, `price` [C]."""
        grid, classes, width = self.grid, len(self.grid.count), self.grid.layers + 1
        before = np.full((self.most + 1, classes, width), INFINITE)
        whole = np.full(self.most + 1, INFINITE)
        before[0, :, 0] = 0.0
        fee = grid.device_cost + price
        for size in range(1, self.most + 1):
            whole[size] = self._close(before[size - 1], fee).min()
            if size < self.most:
                before[size] = self._extend(before[size - 1], fee, first=size == 1).min(axis=0)
        return PrefixBounds(price, float(price @ grid.count), before, whole)

    def visits(self, table: PrefixBounds, size: int) -> Ints:
        """[C]: how often the best walk over `size` devices visits each class."""
        fee = self.grid.device_cost + table.price
        visited = np.zeros(len(self.grid.count), np.int64)
        closed = self._close(table.before[size - 1], fee)
        c, a = divmod(int(closed.argmin()), closed.shape[1])
        visited[c] += 1
        for left in range(size - 1, 0, -1):
            c, a = self._previous(table.before[left - 1], c, a, fee, first=left == 1)
            visited[c] += 1
        return visited

    def _close(self, before: Costs, fee: Costs) -> Costs:
        """[C, L + 1]: least cost of all layers, by class and start of the last stage."""
        time = self.grid.time
        result: Costs = np.where(self.fits_last, before + time[:, -1:] - time, INFINITE) + fee[:, None]
        return result

    def _extend(self, before: Costs, fee: Costs, *, first: bool) -> Any:
        """[C, C, L + 1]: least cost with one more stage, by its class, the next class and its end; the hop included."""
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
        """On a best walk whose stage on c starts at a: the class before c, and the start of its stage."""
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
    """The best lower bound that `rounds` subgradient steps find.

    `above`: the cost of a known placement. The step length is that of Polyak, (above - bound) / |subgradient|^2, times
    a factor that shrinks after each step without an improvement.
    """
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
    """[C]: the first prices.

    Fill the fastest devices until the model fits; the price of a device is the time that it saves against the last,
    slowest device of that filling.
    """
    problem = grid.problem
    rate = grid.time[:, -1] / problem.work[-1]
    order = np.argsort(rate, kind="stable")
    room = np.maximum(0, np.array([float(value) for value in problem.room]))
    needed = np.cumsum(room[order] * grid.count[order]) >= float(problem.need(0, problem.layers))
    marginal = rate[order[int(needed.argmax())]] if needed.any() else rate.max()
    share = np.minimum(1.0, room / float(problem.memory[-1]))
    result: Costs = np.maximum(0.0, (marginal - rate) * problem.work[-1] * share)
    return result
