"""Few devices: every order of classes is tried, all orders of one length at the same time.

For an order c_1..c_k let f_p[a] be the least cost of layers a..L-1 on stages p..k. Then

    f_k[a] = time of layers a..L-1 on c_k                                          if they fit
    f_p[a] = min over a < b <= reach[a] of  time(a..b on c_p) + hop(c_p, c_p+1) + f_p+1[b]

For the slowest stage, `max` replaces the sum with f_p+1. One step works on an array [orders, L + 1, L + 1], so all
orders of k stages take O(orders * k * L^2). Four different GPUs need a few array operations; the tables over subsets
of devices would need hundreds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from uellm.planner.placement.arrays.grid import INFINITE, Costs, Grid, Ints
from uellm.planner.placement.problem import Problem

Orders = dict[int, Ints]
"""By number of stages k: classes [orders, k], sorted by the ids of the devices that an order uses."""
FitsLast = npt.NDArray[np.bool_]


class BestOrder(NamedTuple):
    """The best order of k classes, and the stages that it may have."""

    order: tuple[int, ...]
    """[k]."""
    reach: Ints
    """[C, C or 1, L + 1]: greatest end of a stage on c before d that starts at a."""
    fits_last: FitsLast
    """[C, L + 1]: whether the last stage may start at a."""


def all_orders(grid: Grid, sizes: Sequence[int], rank: Sequence[int], most_cells: int) -> Orders | None:
    """Every order, by number of stages; None if orders times (L + 1)^2 exceed `most_cells`."""
    left, found = most_cells // (grid.layers + 1) ** 2, Orders()
    for size in sizes:
        orders = list(islice(_orders(grid.problem, size, rank), left + 1))
        if len(orders) > left:
            return None
        left -= len(orders)
        if orders:
            found[size] = np.array(orders, np.int64)
    return found


def min_cost(grid: Grid, orders: Orders) -> BestOrder | None:
    """The order of least cost; of equal costs, the fewest devices, then the first by the ids. None if none fits."""
    return _min_cost(grid, orders, grid.reach[:, None], grid.fits_last)


def min_bottleneck(grid: Grid, orders: Orders) -> BestOrder | None:
    """The order with the least time of the slowest stage; ties as in `min_cost`. None if none fits."""
    slowest = [_bottleneck(grid, each) for each in orders.values()]
    bound = min((float(times.min()) for times in slowest), default=INFINITE)
    if bound == INFINITE:
        return None
    return _min_cost(grid, orders, grid.within(bound), grid.fits_last_within(bound))


def _orders(problem: Problem, size: int, rank: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every order of `size` classes, sorted by the ids of the devices that it takes."""
    used = [0] * len(problem.members)

    def extend(order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(order) == size:
            yield order
            return
        able = [c for c in problem.classes if used[c] < len(problem.members[c])]
        for c in sorted(able, key=lambda c: rank[problem.members[c][used[c]]]):
            used[c] += 1
            yield from extend((*order, c))
            used[c] -= 1

    return extend(())


def _min_cost(grid: Grid, orders: Orders, reach: Ints, fits_last: FitsLast) -> BestOrder | None:
    costs = {size: _latency(grid, each, reach, fits_last) + grid.device_cost * size for size, each in orders.items()}
    least = min((float(each.min()) for each in costs.values()), default=INFINITE)
    if least == INFINITE:
        return None
    size = min(size for size, each in costs.items() if each.min() <= least + grid.tolerance)
    first = int(np.argmax(costs[size] <= least + grid.tolerance))
    return BestOrder(tuple(int(c) for c in orders[size][first]), reach, fits_last)


def _latency(grid: Grid, orders: Ints, reach: Ints, fits_last: FitsLast) -> Costs:
    """[orders]: the least total time of all stages and hops; INFINITE if no split fits."""
    last = orders[:, -1]
    cost: Costs = np.where(fits_last[last], grid.time[last, -1:] - grid.time[last], INFINITE)
    for p in range(orders.shape[1] - 2, -1, -1):
        c, d = orders[:, p], orders[:, p + 1]
        starts = 1 if p == 0 else grid.layers + 1
        onward = (cost + grid.time[c])[:, None, :] + _outside(grid, reach, c, d, starts)
        cost = onward.min(axis=2) - grid.time[c, :starts] + grid.hop[c, d][:, None]
    return cost[:, 0]


def _bottleneck(grid: Grid, orders: Ints) -> Costs:
    """[orders]: the least time of the slowest stage and its hop; INFINITE if no split fits."""
    last, reach = orders[:, -1], grid.reach[:, None]
    slow: Costs = np.where(grid.fits_last[last], grid.time[last, -1:] - grid.time[last], INFINITE)
    for p in range(orders.shape[1] - 2, -1, -1):
        c, d = orders[:, p], orders[:, p + 1]
        starts = 1 if p == 0 else grid.layers + 1
        stage = (grid.time[c] + grid.hop[c, d][:, None])[:, None, :] - grid.time[c, :starts, None]
        slow = (np.maximum(stage, slow[:, None, :]) + _outside(grid, reach, c, d, starts)).min(axis=2)
    return slow[:, 0]


def _outside(grid: Grid, reach: Ints, c: Ints, d: Ints, starts: int) -> Costs:
    """[orders, starts, L + 1]: 0 if a stage on class c before class d may hold layers a..b-1, else INFINITE."""
    positions = np.arange(grid.layers + 1)
    ends = reach[c, d if reach.shape[1] > 1 else 0, :starts, None]
    allowed = (positions > positions[:starts, None]) & (positions <= ends)
    return np.where(allowed, 0.0, INFINITE)
