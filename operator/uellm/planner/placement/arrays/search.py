"""The exact search: every order of few devices; else tables over sets of devices, or states pruned by bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm.planner.placement.arrays import enumeration
from uellm.planner.placement.arrays.bottleneck import bottleneck_bounds, bottleneck_bounds_above
from uellm.planner.placement.arrays.frontier import Frontier, FrontierLimits, FrontierResult
from uellm.planner.placement.arrays.grid import INFINITE, Grid, grid, subset_count
from uellm.planner.placement.arrays.held_karp import UniformSearch
from uellm.planner.placement.arrays.lagrangian import PrefixBounds, Relaxation, tightened
from uellm.planner.placement.arrays.reachability import Reachability
from uellm.planner.placement.arrays.traceback import best_split_on_grid, first_order
from uellm.planner.placement.problem import Problem
from uellm.planner.placement.solution import Solution

# Sets of a level in the first look.
GLANCE_CODES = 16
# Steps (set, first class, next class and position) before the least promising states are dropped: sixteen unlike
# devices and eighty layers take fewer even if no bound prunes any.
MOST_STEPS = 1 << 31
# And where there are more than those: a fraction of a second's worth.
CUT_STEPS = 1 << 26
# Sets of a level in the search for the least bottleneck.
MOST_CODES = 500
# Up to this many sets of devices, identical layers are placed by tables over all sets: sixteen unlike devices.
MOST_TABLED_SETS = 1 << 17
ROUNDS = 12
# Orders of classes times pairs of layer positions, up to which every order is tried: quicker there than any table.
FEW_CELLS = 1 << 17


@dataclass(frozen=True, slots=True)
class BestPlacement:
    """A solution, and what no placement can cost less than (units of the problem); None: the solution is optimal.

    No solution: none was found, though not every state was looked at.
    """

    solution: Solution | None
    bound: int | None


def min_cost(problem: Problem, device: int | None, sizes: Sequence[int], rank: Sequence[int]) -> BestPlacement | None:
    """The placement of least cost: latency plus `device` for each device (None: dearer than any latency).

    None where nothing fits. Of equal costs the fewest devices, then the ids' order (`rank`: by device).
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
    """The placement whose slowest stage is the fastest; of equal ones that of least cost, as `cheapest` has it."""
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
        # Layers of unlike sizes fit less well than sets of devices promise.
        found, proven = bottleneck_bounds_above(table, possible, MOST_CODES, found)
        result = None if found == INFINITE else _ExactSearch(table, possible, found).run(rank)
    if found == INFINITE:
        return None if proven == INFINITE else BestPlacement(None, int(proven) << table.shift)
    # Whatever a tie by cost left open, the bottleneck itself is proven.
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
        glance = self._frontier(table, self.sizes, GLANCE_CODES * self._cells_a_code()).run(INFINITE)
        above = min(glance.best.values(), default=INFINITE)
        table = tightened(relaxation, self.sizes, above, ROUNDS)
        sizes = tuple(size for size in self.sizes if table.bound(size) <= above + self.grid.tolerance)
        search = self._frontier(table, sizes, self._level_cells())
        outcome = search.run(above)
        if not outcome.best:
            return None if outcome.dropped == INFINITE else BestPlacement(None, int(outcome.dropped) << self.grid.shift)
        return self._chosen(search, outcome, rank)

    def uniform_layers(self, rank: Sequence[int]) -> BestPlacement | None:
        """Where layers are alike and the sets are few enough to look at all of them."""
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
    """The numbers of devices whose largest have room for everything."""
    problem = grid.problem
    rooms = sorted((problem.room[c] for c in problem.classes for _ in problem.members[c]), reverse=True)
    total, possible = problem.need(0, problem.layers), []
    for size in sizes:
        if sum(max(0, room) for room in rooms[:size]) >= total:
            possible.append(size)
    return tuple(possible)
