"""Chooses the exact method for an instance.

    enumeration.py     few devices: every order
    uniform_search.py  equal layers, and few enough subsets of devices for a table over all of them (held_karp.py)
    frontier.py        otherwise: dynamic programming over states, pruned by Lagrangian bounds (lagrangian.py)

For the bottleneck objective, bottleneck.py first finds the least time of the slowest stage; the search for the least
cost then keeps every stage within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm.planner.placement.arrays import enumeration
from uellm.planner.placement.arrays.bottleneck import bottleneck_bounds, bottleneck_bounds_above
from uellm.planner.placement.arrays.frontier import Frontier, FrontierLimits, FrontierResult
from uellm.planner.placement.arrays.grid import INFINITE, Grid, grid, subset_count
from uellm.planner.placement.arrays.lagrangian import PrefixBounds, Relaxation, tightened
from uellm.planner.placement.arrays.reachability import Reachability
from uellm.planner.placement.arrays.traceback import best_split_on_grid, first_order
from uellm.planner.placement.arrays.uniform_search import UniformSearch
from uellm.planner.placement.problem import Problem
from uellm.planner.placement.solution import Solution

# Subsets kept per level in the first, quick pass.
FIRST_PASS_CODES = 16
# Steps (subset, first class, next class, position) before the least promising states are dropped. Sixteen different
# devices and eighty layers take fewer, even without pruning.
MOST_STEPS = 1 << 31
# The steps that are taken if there are more: a fraction of a second.
CUT_STEPS = 1 << 26
# Subsets kept per level in the search for the least bottleneck.
MOST_CODES = 500
# The most subsets for which tables over all subsets are used: sixteen different devices.
MOST_TABLED_SETS = 1 << 17
# Subgradient steps.
ROUNDS = 12
# The most orders times (L + 1)^2 for which every order is tried: faster there than any table.
FEW_CELLS = 1 << 17


@dataclass(frozen=True, slots=True)
class BestPlacement:
    """The best placement that a search found."""

    solution: Solution | None
    """None: the search found none, but did not look at every state."""
    bound: int | None
    """No placement costs less (units of the problem); None: the solution is optimal."""


def min_cost(problem: Problem, device: int | None, sizes: Sequence[int], rank: Sequence[int]) -> BestPlacement | None:
    """The placement of least cost: latency plus `device` per device (None: more than any latency).

    `sizes`: the allowed numbers of devices. Of equal costs it has the fewest devices, then the first order by the
    ids; `rank` [n] is the position of each device in the order of the ids. None if nothing fits.
    """
    table = grid(problem, device)
    if (orders := enumeration.all_orders(table, _possible(table, sizes), rank, FEW_CELLS)) is not None:
        return _enumerated(table, enumeration.min_cost(table, orders))
    search = _ExactSearch(table, sizes, None)
    if problem.uniform and search.sizes and subset_count(table) <= MOST_TABLED_SETS:
        return search.uniform_layers(rank)
    return search.run(rank)


def min_bottleneck(
    problem: Problem, device: int | None, sizes: Sequence[int], rank: Sequence[int]
) -> BestPlacement | None:
    """The placement with the least time of the slowest stage; ties by the cost, as in `min_cost`."""
    table = grid(problem, device)
    possible = _possible(table, sizes)
    if not possible:
        return None
    if (orders := enumeration.all_orders(table, possible, rank, FEW_CELLS)) is not None:
        return _enumerated(table, enumeration.min_bottleneck(table, orders))
    every = subset_count(table) <= MOST_TABLED_SETS
    found, proven = bottleneck_bounds(table, possible, MOST_TABLED_SETS if every else MOST_CODES)
    result = None if found == INFINITE else _ExactSearch(table, possible, found).run(rank)
    if result is None and found < INFINITE:
        # The bound may be too low for layers of different sizes: search above it.
        found, proven = bottleneck_bounds_above(table, possible, MOST_CODES, found)
        result = None if found == INFINITE else _ExactSearch(table, possible, found).run(rank)
    if found == INFINITE:
        return None if proven == INFINITE else BestPlacement(None, int(proven) << table.shift)
    # Even if the least cost is not proven, the bottleneck is.
    solution = None if result is None else result.solution
    return BestPlacement(solution, None if solution and proven >= found else int(proven) << table.shift)


def _enumerated(grid: Grid, found: enumeration.BestOrder | None) -> BestPlacement | None:
    return (
        None
        if found is None
        else BestPlacement(best_split_on_grid(grid, found.order, found.reach, found.fits_last), None)
    )


class _ExactSearch:
    def __init__(self, grid: Grid, sizes: Sequence[int], bound: float | None) -> None:
        self.grid, self.bound = grid, bound
        self.sizes = _possible(grid, sizes)
        dense = bound is not None and subset_count(grid) <= MOST_TABLED_SETS
        self.before = Reachability(grid, bound).prefixes() if dense and bound is not None else None

    def run(self, rank: Sequence[int]) -> BestPlacement | None:
        if not self.sizes:
            return None
        relaxation = Relaxation(self.grid, max(self.sizes), self.bound)
        table = tightened(relaxation, self.sizes, INFINITE, 0)
        first_pass = self._frontier(table, self.sizes, FIRST_PASS_CODES * self._cells_a_code()).run(INFINITE)
        above = min(first_pass.best.values(), default=INFINITE)
        table = tightened(relaxation, self.sizes, above, ROUNDS)
        sizes = tuple(size for size in self.sizes if table.bound(size) <= above + self.grid.tolerance)
        search = self._frontier(table, sizes, self._level_cells())
        outcome = search.run(above)
        if not outcome.best:
            return None if outcome.dropped == INFINITE else BestPlacement(None, int(outcome.dropped) << self.grid.shift)
        return self._chosen(search, outcome, rank)

    def uniform_layers(self, rank: Sequence[int]) -> BestPlacement | None:
        """The best placement of equal layers, by tables over all subsets."""
        found = UniformSearch(self.grid, self.sizes).order(rank)
        if found is None:
            return None
        grid = self.grid
        return BestPlacement(best_split_on_grid(grid, found[0], grid.reach[:, None], grid.fits_last), None)

    def _chosen(self, search: Frontier, outcome: FrontierResult, rank: Sequence[int]) -> BestPlacement:
        least = min(outcome.best.values())
        budget = least + self.grid.tolerance
        size = min(size for size, cost in outcome.best.items() if cost <= budget)
        order = first_order(search, outcome.levels, size, budget, rank)
        solution = best_split_on_grid(self.grid, order, search.reach, search.fits_last)
        proven = outcome.dropped >= least
        return BestPlacement(solution, None if proven else int(outcome.dropped) << self.grid.shift)

    def _frontier(self, table: PrefixBounds, sizes: tuple[int, ...], cells: int) -> Frontier:
        return Frontier(self.grid, table, FrontierLimits(cells, sizes), self.bound, self.before)

    def _level_cells(self) -> int:
        classes = len(self.grid.count)
        everything = subset_count(self.grid) * classes * self._cells_a_code()
        return everything if everything <= MOST_STEPS else CUT_STEPS // (classes * max(self.sizes))

    def _cells_a_code(self) -> int:
        return len(self.grid.count) * (self.grid.layers + 1)


def _possible(grid: Grid, sizes: Sequence[int]) -> tuple[int, ...]:
    """The numbers of devices for which the largest devices together have room for the model."""
    problem = grid.problem
    rooms = sorted((problem.room[c] for c in problem.classes for _ in problem.members[c]), reverse=True)
    total, possible = problem.need(0, problem.layers), []
    for size in sizes:
        if sum(max(0, room) for room in rooms[:size]) >= total:
            possible.append(size)
    return tuple(possible)
