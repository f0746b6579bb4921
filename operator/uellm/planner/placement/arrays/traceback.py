"""From the levels of a search to one placement: of those within the budget, the first by the order of the ids.

The traceback goes from the first stage to the last. It keeps every state that a placement within the budget can pass
through. Twin classes share codes in a level, so a slot of the code is bound to an actual class when the traceback
first reaches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uellm.planner.placement.arrays.frontier import Frontier, Level, canonical_order
from uellm.planner.placement.arrays.grid import INFINITE, Costs, Grid, Ints
from uellm.planner.placement.solution import SHARES, Solution

# The most states that are followed. If there are more, ties are broken among these only.
MOST_STATES = 4096


@dataclass(frozen=True, slots=True)
class _State:
    """A state of the traceback."""

    code: int
    """The subset of devices left."""
    first: int
    """Class of the next stage, as the level's code has it."""
    names: tuple[tuple[int, int], ...] = ()
    """Twin classes met so far: class in the code, actual class."""


def first_order(search: Frontier, levels: dict[int, Level], size: int, budget: float, rank: Sequence[int]) -> list[int]:
    """Classes in pipeline order [size] of the first placement, by `rank` [n], that costs at most `budget`."""
    return _Traceback(search, levels, rank).order(size, budget)


class _Traceback:
    def __init__(self, search: Frontier, levels: dict[int, Level], rank: Sequence[int]) -> None:
        self.search, self.grid, self.levels, self.rank = search, search.grid, levels, rank
        self.used = [0] * len(self.grid.count)
        self.turns = [(int(w), int(n) + 1) for w, n in zip(self.grid.weight, self.grid.count, strict=True)]
        self.twins = {c: group for group in self.grid.twins for c in group}

    def order(self, size: int, budget: float) -> list[int]:
        level = self.levels[size]
        classes, ks = np.nonzero(level.values[:, 0] <= budget)
        states = {
            _State(int(level.codes[k]), int(c)): {0: budget}
            for c, k in list(zip(classes, ks, strict=True))[:MOST_STATES]
        }
        order: list[int] = []
        while states:
            chosen = min(self._next_rank(state) for state in states)
            kept = [(state, spots) for state, spots in states.items() if self._next_rank(state) == chosen]
            actual = self._name(kept[0][0])
            order.append(actual)
            self.used[actual] += 1
            size -= 1
            states = {}
            for state, spots in kept if size else ():
                self._onward(state, spots, size, states)
        return order

    def _name(self, state: _State) -> int:
        """The actual class of the state's first stage."""
        named = dict(state.names)
        if state.first in named or state.first not in self.twins:
            return named.get(state.first, state.first)
        return next(c for c in self.twins[state.first] if c not in named.values())

    def _next_rank(self, state: _State) -> int:
        actual = self._name(state)
        return self.rank[self.grid.problem.members[actual][self.used[actual]]]

    def _onward(
        self, state: _State, spots: dict[int, float], size: int, states: dict[_State, dict[int, float]]
    ) -> None:
        grid, c = self.grid, state.first
        names = state.names
        if c in self.twins and c not in dict(names):
            names = (*names, (c, self._named_last(state)))
        rest, level = state.code - int(grid.weight[c]), self.levels[size]
        held = self._distinct(rest, {slot for slot, _ in names})
        codes, classes = np.full(len(held), rest), np.array(held)
        if grid.twins:
            codes, classes = canonical_order(grid, codes, classes)
        for d, code, shown in zip(held, codes, classes, strict=True):
            k = int(np.searchsorted(level.codes, code))
            if k == len(level.codes) or level.codes[k] != code:
                continue
            found = self._spots(spots, c, d, level, level.values[shown, :, k])
            if found and len(states) < MOST_STATES:
                known = states.setdefault(_State(rest, d, names), {})
                for b, left in found.items():
                    known[b] = max(left, known.get(b, -INFINITE))

    def _distinct(self, code: int, named: set[int]) -> list[int]:
        """Classes in a subset. Of twins that were not met yet and are used equally often, only the first."""
        held, seen = list[int](), set[tuple[int, int]]()
        for d, (weight, count) in enumerate(self.turns):
            used = code // weight % count
            alike = (self.twins[d][0], used) if d in self.twins and d not in named else (-1 - d, used)
            if used and alike not in seen:
                seen.add(alike)
                held.append(d)
        return held

    def _named_last(self, state: _State) -> int:
        """The actual class that the traceback has just bound to the state's first class."""
        named = dict(state.names).values()
        return next(c for c in self.twins[state.first] if c not in named)

    def _spots(self, spots: dict[int, float], c: int, d: int, level: Level, onward: Costs) -> dict[int, float]:
        """By start of the next stage: the budget left from there on."""
        grid, reach, found = self.grid, self.search.reach, dict[int, float]()
        for a, left in spots.items():
            first, end = max(a + 1, level.low), int(reach[c, d if reach.shape[1] > 1 else 0, a])
            values = onward[first - level.low : end + 1 - level.low]
            spent = grid.time[c, first : first + len(values)] - grid.time[c, a] + grid.hop[c, d] + grid.device_cost
            after = left - spent
            for index in np.flatnonzero(values <= after):
                b = first + int(index)
                found[b] = max(float(after[index]), found.get(b, -INFINITE))
        return found


def best_split_on_grid(grid: Grid, order: Sequence[int], reach: Ints, fits_last: npt.NDArray[np.bool_]) -> Solution:
    """The cheapest split of the layers for an order of k classes, in O(k L^2), with costs of the grid.

    Of equally cheap splits it is the one whose fullest device is the least full, as in `solution.best_split`.
    """
    problem, layers = grid.problem, grid.layers
    memory = np.array([float(value) for value in problem.memory])
    positions = np.arange(layers + 1)
    ends: list[Ints] = []
    cost = fullest = np.zeros(0)
    for index in range(len(order) - 1, -1, -1):
        c = order[index]
        time, room = grid.time[c], max(float(problem.room[c]), 1.0)
        if index == len(order) - 1:
            cost = np.where(fits_last[c], time[-1] - time, INFINITE)
            need = memory[-1] - memory + float(problem.last) + (positions == 0) * float(problem.first)
            fullest = np.rint(need / room * SHARES)
            ends.append(np.full(layers + 1, layers))
            continue
        d = order[index + 1]
        limit = reach[c, d if reach.shape[1] > 1 else 0]
        allowed = (positions[None, :] > positions[:, None]) & (positions[None, :] <= limit[:, None])
        costs = np.where(allowed, cost[None, :] + time[None, :] - time[:, None] + grid.hop[c, d], INFINITE)
        cost = costs.min(axis=1)
        need = memory[None, :] - memory[:, None] + (positions == 0)[:, None] * float(problem.first)
        equal = costs <= cost[:, None] + grid.tolerance
        share = np.where(equal, np.maximum(np.rint(need / room * SHARES), fullest[None, :]), INFINITE)
        fullest = share.min(axis=1)
        # Of equal splits, the longest stage.
        best = (share <= fullest[:, None]) & equal
        ends.append(layers - best[:, ::-1].argmax(axis=1))
    counts, a = [], 0
    for chosen in reversed(ends):
        counts.append(int(chosen[a]) - a)
        a = int(chosen[a])
    return Solution(tuple(order), tuple(counts))
