"""Equal layers: the cost of a subset of devices is a filling plus a shortest path, and each is found on its own.

The filling gives every device of the subset one layer, and the rest to the fastest devices. The order of the devices
is the shortest Hamiltonian path through the subset (held_karp.py).

Filling and path depend on each other only if embedding or head take the room of a layer on the first or last device.
Then the paths are computed for each last device that can still be optimal, and the fillings for each first device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uellm.planner.placement.arrays.grid import INFINITE, Costs, Grid, Ints
from uellm.planner.placement.arrays.held_karp import Subsets, shortest_between

# Subsets whose best ends are evaluated first, to have a good upper bound early.
FIRST_PASS = 512
# The most subsets with given ends whose paths are searched one by one.
MOST_ENDS = 4000


@dataclass(slots=True)
class _Candidates:
    """m subsets that cost no more than the best."""

    paths: Costs
    """[C, S]: shortest paths by first class and subset."""
    codes: Ints
    """[m]."""
    firsts: Ints
    """[m]: class of the first device."""
    totals: Costs
    """[m]: cost of the placement."""


class UniformSearch:
    """A search among subsets of `sizes` devices for the cheapest placement of equal layers."""

    def __init__(self, grid: Grid, sizes: Sequence[int]) -> None:
        self.grid, self.sizes, self.sets = grid, sizes, Subsets(grid, max(sizes))
        self.best = INFINITE
        self.candidates: list[_Candidates] = []

    def order(self, rank: Sequence[int]) -> tuple[list[int], float] | None:
        """Classes in pipeline order of the cheapest placement, and its cost; None if nothing fits.

        Of equal costs it has the fewest devices, then the first order by the ids (`rank` [n]).
        """
        subsets, forward = self.sets, self.sets.paths()
        codes = np.concatenate([subsets.by_size[size] for size in self.sizes])
        filling = self._cost(codes)
        # A single device holds both ends. They may fit one by one and not together.
        for c, weight in enumerate(self.grid.weight):
            if not self.grid.problem.fits(c, 0, self.grid.layers):
                filling[codes == weight] = INFINITE
        codes, filling = codes[filling < INFINITE], filling[filling < INFINITE]
        bounds = filling + forward[:, codes].min(axis=0)
        usable = subsets.room > 0
        if not (subsets.lost_first[usable].any() or subsets.lost_last[usable].any()):
            near_best = bounds <= bounds.min(initial=INFINITE) + self.grid.tolerance
            for first in range(len(self.grid.count)):
                self._keep(forward, first, codes[near_best], filling[near_best] + forward[first, codes[near_best]])
        else:
            self._ends(forward, codes, bounds)
        return self._traceback(rank) if self.best < INFINITE else None

    def _ends(self, forward: Costs, codes: Ints, bounds: Costs) -> None:
        """If the ends take room: try every last class that can still be optimal, then every first class."""
        self._on_one_device()
        multiple = self.sets.size[codes] > 1
        codes, bounds = codes[multiple], bounds[multiple]
        backward = self.sets.paths(backward=True)
        best_bounds = codes[np.argsort(bounds, kind="stable")[:FIRST_PASS]]
        first, last = self.sets.ends(forward, best_bounds)
        costs = (
            self.sets.filled(best_bounds, first, last)
            + self.grid.device_cost * self.sets.size[best_bounds]
            + forward[first, best_bounds]
        )
        costs[(self.sets.free_first[first] < 1) | (self.sets.free_last[last] < 1)] = INFINITE
        self.best = min(self.best, float(costs.min(initial=INFINITE)))
        near_best = codes[bounds <= self.best + self.grid.tolerance]
        ends = self._with_both_ends(forward, backward, near_best)
        for end, subset_codes in self._by_last_class(forward, backward, ends).items():
            self._try_first_classes(self.sets.anchored(end), end, subset_codes)

    def _with_both_ends(self, forward: Costs, backward: Costs, codes: Ints) -> tuple[Costs, Ints, Ints, Ints, Costs]:
        """The subsets with both ends that may still be optimal.

        Five arrays of one length: lower bound on the cost, subset, first class, last class, cost without hops.
        """
        empty = np.zeros(0, np.int64)
        found = [(np.zeros(0), empty, empty, empty, np.zeros(0))]
        limit, filling = self.best + self.grid.tolerance, self._cost(codes)
        for last in range(len(self.grid.count)):
            # Loose bounds first: the filling takes the most time to compute.
            possible = codes[filling + backward[last, codes] <= limit]
            with_last = self._cost(possible, last=last)
            hops = np.maximum(forward[:, possible], backward[last, possible])
            for first in range(len(self.grid.count)):
                with_both = (with_last + hops[first] <= limit) & (self.sets.used[last, possible] > (first == last))
                if with_both.any():
                    kept_codes = possible[with_both]
                    costs = self._cost(kept_codes, first, last)
                    bounds = costs + hops[first, with_both]
                    kept = (bounds <= limit) & (bounds < INFINITE)
                    count = int(kept.sum())
                    found.append(
                        (bounds[kept], kept_codes[kept], np.full(count, first), np.full(count, last), costs[kept])
                    )
        bounds, subsets, firsts, lasts, fillings = (np.concatenate(part) for part in zip(*found, strict=True))
        return bounds, subsets, firsts, lasts, fillings

    def _by_last_class(
        self, forward: Costs, backward: Costs, ends: tuple[Costs, Ints, Ints, Ints, Costs]
    ) -> dict[int, Ints]:
        """By last class, the subsets that may be optimal. If they are few, their paths are searched one by one."""
        bounds, codes, firsts, lasts, fillings = ends
        if len(bounds) > MOST_ENDS:
            return {int(last): np.unique(codes[lasts == last]) for last in np.unique(lasts)}
        found: list[tuple[float, int, int]] = []
        for index in np.argsort(bounds, kind="stable"):
            limit = self.best + self.grid.tolerance
            if bounds[index] > limit:
                break
            code, first, last = int(codes[index]), int(firsts[index]), int(lasts[index])
            filling = float(fillings[index])
            hops = shortest_between(self.sets, forward, backward, (code, first, last), limit - filling)
            if hops is not None:
                self.best = min(self.best, filling + hops)
                found.append((filling + hops, last, code))
        kept = [(last, code) for cost, last, code in found if cost <= self.best + self.grid.tolerance]
        return {
            last: np.unique([code for end, code in kept if end == last])
            for last in dict.fromkeys(end for end, _ in kept)
        }

    def _on_one_device(self) -> None:
        """Placements on one device."""
        for c in self.grid.problem.classes:
            if 1 in self.sizes and self.grid.problem.fits(c, 0, self.grid.layers):
                code = np.array([self.grid.weight[c]])
                cost = np.array([self.grid.time[c, -1] + self.grid.device_cost])
                self._keep(_single_device_paths(self.grid, c, len(self.sets.size)), c, code, cost)

    def _try_first_classes(self, paths: Costs, last: int, codes: Ints) -> None:
        for first in range(len(self.grid.count)):
            reachable = codes[paths[first, codes] < INFINITE]
            self._keep(paths, first, reachable, self._cost(reachable, first, last) + paths[first, reachable])

    def _cost(self, codes: Ints, first: int = -1, last: int = -1) -> Costs:
        subsets = self.sets
        if (last >= 0 and subsets.free_last[last] < 1) or (first >= 0 and subsets.free_first[first] < 1):
            return np.full(len(codes), INFINITE)
        result: Costs = subsets.filled(codes, first, last) + self.grid.device_cost * subsets.size[codes]
        return result

    def _keep(self, paths: Costs, first: int, codes: Ints, totals: Costs) -> None:
        if not len(totals) or float(totals.min()) > self.best + self.grid.tolerance:
            return
        self.best = min(self.best, float(totals.min()))
        kept = totals <= self.best + self.grid.tolerance
        if kept.any() and self.best < INFINITE:
            self.candidates.append(_Candidates(paths, codes[kept], np.full(int(kept.sum()), first), totals[kept]))

    def _traceback(self, rank: Sequence[int]) -> tuple[list[int], float]:
        grid, subsets, budget = self.grid, self.sets, self.best + self.grid.tolerance
        size = min(
            int(subsets.size[candidates.codes[candidates.totals <= budget]].min(initial=grid.most + 1))
            for candidates in self.candidates
        )
        states: list[tuple[Costs, int, Ints, Costs]] = []
        for candidates in self.candidates:
            kept = (candidates.totals <= budget) & (subsets.size[candidates.codes] == size)
            first = int(candidates.firsts[0])
            hops = budget - candidates.totals[kept] + candidates.paths[first, candidates.codes[kept]]
            states.append((candidates.paths, first, candidates.codes[kept], hops))
        used, order = [0] * len(grid.count), list[int]()
        while states:
            states = [state for state in states if len(state[2])]
            if not states:
                break
            chosen = min({state[1] for state in states}, key=lambda c: rank[grid.problem.members[c][used[c]]])
            order.append(chosen)
            used[chosen] += 1
            states = [following for state in states if state[1] == chosen for following in self._following(state)]
        return order, self.best

    def _following(self, state: tuple[Costs, int, Ints, Costs]) -> list[tuple[Costs, int, Ints, Costs]]:
        paths, c, codes, hops = state
        rest, result = codes - self.grid.weight[c], []
        for d in range(len(self.grid.count)):
            left = hops - self.grid.hop[c, d]
            kept = (rest > 0) & (paths[d, rest] <= left)
            if kept.any():
                result.append((paths, d, rest[kept], left[kept]))
        return result


def _single_device_paths(grid: Grid, c: int, codes: int) -> Costs:
    table = np.full((len(grid.count), codes), INFINITE)
    table[c, grid.weight[c]] = 0.0
    return table
