"""The exact search: every order of few devices; else tables over sets of devices, or states pruned by bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm.planner.placement.arrays import enumeration
from uellm.planner.placement.arrays.bottleneck import least_slowest, least_slowest_of_unlike
from uellm.planner.placement.arrays.frontier import Frontier, Limits, Outcome
from uellm.planner.placement.arrays.grid import INFINITE, Grid, grid, sets
from uellm.planner.placement.arrays.held_karp import AlikeSearch
from uellm.planner.placement.arrays.lagrangian import Prefixes, Relaxation, priced
from uellm.planner.placement.arrays.reachability import Extents
from uellm.planner.placement.arrays.traceback import first_order, spread
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
class Answer:
    """A solution, and what no placement can cost less than (units of the problem); None: the solution is optimal.

    No solution: none was found, though not every state was looked at.
    """

    solution: Solution | None
    bound: int | None


def cheapest(problem: Problem, device: int | None, sizes: Sequence[int], rank: Sequence[int]) -> Answer | None:
    """The placement of least cost: latency plus `device` for each device (None: dearer than any latency).

    None where nothing fits. Of equal costs the fewest devices, then the ids' order (`rank`: by device).
    """
    table = grid(problem, device)
    if (orders := enumeration.few_orders(table, _possible(table, sizes), rank, FEW_CELLS)) is not None:
        return _enumerated(table, enumeration.cheapest(table, orders))
    search = _Search(table, sizes, None)
    if problem.uniform and search.sizes and sets(table) <= MOST_TABLED_SETS:
        return search.alike(rank)
    return search.answer(rank)


def fastest(problem: Problem, device: int | None, sizes: Sequence[int], rank: Sequence[int]) -> Answer | None:
    """The placement whose slowest stage is the fastest; of equal ones that of least cost, as `cheapest` has it."""
    table = grid(problem, device)
    possible = _possible(table, sizes)
    if not possible:
        return None
    if (orders := enumeration.few_orders(table, possible, rank, FEW_CELLS)) is not None:
        return _enumerated(table, enumeration.fastest(table, orders))
    every = sets(table) <= MOST_TABLED_SETS
    found, proven = least_slowest(table, possible, MOST_TABLED_SETS if every else MOST_CODES)
    answer = None if found == INFINITE else _Search(table, possible, found).answer(rank)
    if answer is None and found < INFINITE:
        # Layers of unlike sizes fit less well than sets of devices promise.
        found, proven = least_slowest_of_unlike(table, possible, MOST_CODES, found)
        answer = None if found == INFINITE else _Search(table, possible, found).answer(rank)
    if found == INFINITE:
        return None if proven == INFINITE else Answer(None, int(proven) << table.shift)
    # Whatever a tie by cost left open, the bottleneck itself is proven.
    solution = None if answer is None else answer.solution
    return Answer(solution, None if solution and proven >= found else int(proven) << table.shift)


def _enumerated(grid: Grid, found: enumeration.Best | None) -> Answer | None:
    return None if found is None else Answer(spread(grid, found.order, found.reach, found.closes), None)


class _Search:
    def __init__(self, grid: Grid, sizes: Sequence[int], bound: float | None) -> None:
        self.grid, self.bound = grid, bound
        self.sizes = _possible(grid, sizes)
        dense = bound is not None and sets(grid) <= MOST_TABLED_SETS
        self.before = Extents(grid, bound).prefixes() if dense and bound is not None else None

    def answer(self, rank: Sequence[int]) -> Answer | None:
        if not self.sizes:
            return None
        relaxation = Relaxation(self.grid, max(self.sizes), self.bound)
        table = priced(relaxation, self.sizes, INFINITE, 0)
        glance = self._frontier(table, self.sizes, GLANCE_CODES * self._cells_a_code()).run(INFINITE)
        above = min(glance.best.values(), default=INFINITE)
        table = priced(relaxation, self.sizes, above, ROUNDS)
        sizes = tuple(size for size in self.sizes if table.bound(size) <= above + self.grid.ties)
        search = self._frontier(table, sizes, self._level_cells())
        outcome = search.run(above)
        if not outcome.best:
            return None if outcome.dropped == INFINITE else Answer(None, int(outcome.dropped) << self.grid.shift)
        return self._chosen(search, outcome, rank)

    def alike(self, rank: Sequence[int]) -> Answer | None:
        """Where layers are alike and the sets are few enough to look at all of them."""
        found = AlikeSearch(self.grid, self.sizes).order(rank)
        if found is None:
            return None
        grid = self.grid
        return Answer(spread(grid, found[0], grid.reach[:, None], grid.closes), None)

    def _chosen(self, search: Frontier, outcome: Outcome, rank: Sequence[int]) -> Answer:
        least = min(outcome.best.values())
        budget = least + self.grid.ties
        size = min(size for size, cost in outcome.best.items() if cost <= budget)
        order = first_order(search, outcome.levels, size, budget, rank)
        solution = spread(self.grid, order, search.reach, search.closes)
        proven = outcome.dropped >= least
        return Answer(solution, None if proven else int(outcome.dropped) << self.grid.shift)

    def _frontier(self, table: Prefixes, sizes: tuple[int, ...], cells: int) -> Frontier:
        return Frontier(self.grid, table, Limits(cells, sizes), self.bound, self.before)

    def _level_cells(self) -> int:
        classes = len(self.grid.count)
        everything = sets(self.grid) * classes * self._cells_a_code()
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
