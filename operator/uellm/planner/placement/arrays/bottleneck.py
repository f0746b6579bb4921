"""The least possible time of the slowest stage, which sets the throughput of a filled pipeline.

A stage's time is its work plus the hop to the next stage. The least bound that some placement keeps is found by
bisection over the T times that any stage can have: O(log T) feasibility checks. T is at most C (C + 1) L (L + 1) / 2
for C classes and L layers; equal layers have C (C + 1) L times.

A check goes from the last stage to the first. A state is (subset of devices used, class of the first of them), with
the layers at which it can start. For equal layers one number is enough: the most layers that its stages can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from uellm.planner.placement.arrays.frontier import canonical_order, scatter
from uellm.planner.placement.arrays.grid import INFINITE, Costs, Grid, Ints, subset_count
from uellm.planner.placement.arrays.reachability import Reachability

# Subsets kept per level in the first pass, which settles most checks.
FIRST_PASS = 64
# A position behind every layer: the state cannot start anywhere.
NOWHERE = 1 << 24


def bottleneck_bounds(grid: Grid, sizes: Sequence[int], most_codes: int) -> tuple[float, float]:
    """Upper and lower bound on the least time of the slowest stage; INFINITE if no placement was found.

    If all subsets are checked (S <= `most_codes`), the first value is exact for equal layers. For layers of different
    sizes it is only a lower bound: stages may be empty in that check (reachability.py).
    """
    times = _times(grid)

    def feasible(bound: float) -> bool | None:
        if most_codes >= subset_count(grid):
            return Reachability(grid, bound).possible(sizes)
        return _feasible(grid, bound, sizes, most_codes)

    return _bisect(times, feasible)


def bottleneck_bounds_above(grid: Grid, sizes: Sequence[int], most_codes: int, above: float) -> tuple[float, float]:
    """The same among times greater than `above`, which is known to be too low."""
    times = _times(grid)
    return _bisect(times[times > above], lambda bound: _feasible(grid, bound, sizes, most_codes))


def _bisect(times: Costs, feasible: Callable[[float], bool | None]) -> tuple[float, float]:
    low, high, proven = 0, len(times), 0
    while low < high:
        middle = (low + high) // 2 if high < len(times) else high - 1
        answer = feasible(float(times[middle]))
        if answer:
            high = middle
        else:
            low = middle + 1
            if answer is False:
                proven = low
    found = float(times[low]) if low < len(times) else INFINITE
    return found, float(times[proven]) if proven < len(times) else INFINITE


def _times(grid: Grid) -> Costs:
    """[T]: every time that some stage can have, ascending."""
    if grid.problem.uniform:
        spans = grid.time[:, 1:]
    else:
        a, b = np.triu_indices(grid.layers + 1, 1)
        spans = grid.time[:, b] - grid.time[:, a]
    hops = np.concatenate([np.zeros((len(grid.hop), 1)), grid.hop], axis=1)
    by_class = [(np.unique(span)[:, None] + np.unique(hop)).ravel() for span, hop in zip(spans, hops, strict=True)]
    result: Costs = np.unique(np.concatenate(by_class))
    return result


def _feasible(grid: Grid, bound: float, sizes: Sequence[int], most_codes: int) -> bool | None:
    """Whether some placement keeps the bound; None if dropped states leave it open."""
    stages = _UniformStages(grid, bound) if grid.problem.uniform else _GeneralStages(grid, bound)
    feasible = _FeasibilityCheck(grid, stages, sizes, FIRST_PASS).feasible()
    return _FeasibilityCheck(grid, stages, sizes, most_codes).feasible() if feasible is None else feasible


class _GeneralStages:
    """Stages within a bound, for layers of any size.

    values [C, L + 1, K]: whether layers a..L-1 fit on the devices of subset k, with a stage on c in front.
    """

    def __init__(self, grid: Grid, bound: float) -> None:
        self.reach = grid.within(bound).astype(np.int16)
        self.fits_last = grid.fits_last_within(bound)
        self.whole = bool(self.fits_last[:, 0].any())
        positions = np.arange(grid.layers + 1)
        longest = (self.reach - positions).max(axis=(1, 2))
        self.longest = np.maximum(longest, (self.fits_last * (grid.layers - positions)).max(axis=1))
        self.merge, self.nothing, self.dtype = np.logical_or, False, np.bool_

    def last(self) -> Any:
        return self.fits_last[:, :, None].copy()

    def _following(self, values: Any) -> Any:
        """[C, L + 1, K]: the first position after a at which the later stages can start."""
        classes, width, codes = values.shape
        positions = np.arange(width, dtype=np.int16)[None, :, None]
        marked = np.where(values, positions, np.int16(width))
        nearest = np.minimum.accumulate(marked[:, ::-1], axis=1)[:, ::-1]
        return np.concatenate([nearest[:, 1:], np.full((classes, 1, codes), width, np.int16)], axis=1)

    def before(self, values: Any) -> Any:
        following = self._following(values)
        found = np.zeros(values.shape, np.bool_)
        for c, reach in enumerate(self.reach):
            for d, ends in enumerate(reach):
                found[c] |= following[d] <= ends[:, None]
        return found

    def opens(self, c: int, values: Any) -> bool:
        first = np.where(values.any(axis=1), values.argmax(axis=1), NOWHERE)
        return bool((first <= self.reach[c, :, :1]).any())

    def pruned(self, found: Any, still: Ints) -> npt.NDArray[np.bool_]:
        found &= np.arange(found.shape[1])[None, :, None] <= still[:, None, :]
        found[:, 0] = False
        alive: npt.NDArray[np.bool_] = found.any(axis=1)
        return alive

    def front(self, values: Any) -> Ints:
        result: Ints = values.argmax(axis=0).astype(np.int64)
        return result


class _UniformStages:
    """Stages within a bound, for equal layers.

    values [C, 1, K]: the first layer of a stage on c if it and all later stages are as long as they can be.
    """

    def __init__(self, grid: Grid, bound: float) -> None:
        reach, fits_last = grid.within(bound), grid.fits_last_within(bound)
        self.whole = bool(fits_last[:, 0].any())
        middle = min(1, grid.layers - 1)
        room = reach[:, :, middle] - middle if grid.layers > 1 else np.zeros(reach.shape[:2], np.int64)
        self.span = np.where(room > 0, room, -NOWHERE)
        self.first = reach[:, :, 0]
        fits_last[:, 0] = False
        self.start = np.where(fits_last.any(axis=1), fits_last.argmax(axis=1), NOWHERE)
        self.longest = np.maximum(np.maximum(self.span.max(axis=1), self.first.max(axis=1)), grid.layers - self.start)
        self.merge, self.nothing, self.dtype = np.minimum, NOWHERE, np.int64

    def last(self) -> Any:
        return self.start[:, None, None]

    def before(self, values: Any) -> Any:
        return np.stack([(values[:, 0] - span[:, None]).min(axis=0) for span in self.span])[:, None]

    def opens(self, c: int, values: Any) -> bool:
        return bool((values[:, 0] <= self.first[c][:, None]).any())

    def pruned(self, found: Any, still: Ints) -> npt.NDArray[np.bool_]:
        alive: npt.NDArray[np.bool_] = found[:, 0] <= still
        return alive

    def front(self, values: Any) -> Ints:
        result: Ints = values[0]
        return result


class _FeasibilityCheck:
    """Checks whether some placement keeps a bound, level by level from the last stage."""

    def __init__(
        self, grid: Grid, stages: _UniformStages | _GeneralStages, sizes: Sequence[int], most_codes: int
    ) -> None:
        self.grid, self.stages, self.sizes, self.most_codes = grid, stages, sizes, most_codes
        self.dropped = False

    def feasible(self) -> bool | None:
        """True or False; None if it is unknown because states were dropped."""
        if self.stages.whole and 1 in self.sizes:
            return True
        if int(self.stages.longest @ self.grid.count) < self.grid.layers:
            return False
        level = self._kept(np.zeros(1, np.int64), self.stages.last())
        for size in range(2, max(self.sizes) + 1):
            if level is None:
                break
            codes, values = level
            if size in self.sizes and self._opened(codes, values):
                return True
            level = self._kept(codes, self.stages.before(values)) if size < max(self.sizes) else None
        return None if self.dropped else False

    def _opened(self, codes: Ints, values: Any) -> bool:
        """Whether a first stage in front of some state completes a placement."""
        for c, weight in enumerate(self.grid.weight):
            able = codes // weight % (self.grid.count[c] + 1) < self.grid.count[c]
            if able.any() and self.stages.opens(c, values[:, :, able]):
                return True
        return False

    def _kept(self, codes: Ints, found: Any) -> tuple[Ints, Any] | None:
        """The states of the next level that the remaining devices may still complete."""
        grid, stages = self.grid, self.stages
        left = grid.count[:, None] - codes // grid.weight[:, None] % (grid.count[:, None] + 1)
        # The most layers that the devices left after this stage can hold.
        still = (stages.longest @ left)[None, :] - stages.longest[:, None]
        alive = stages.pruned(found, still) & (left > 0)
        c, k = np.nonzero(alive)
        if not len(c):
            return None
        fresh, values = codes[k] + grid.weight[c], found[c, :, k].T
        margin = still[c, k] - stages.front(values)
        if grid.twins:
            fresh, c = canonical_order(grid, fresh, c)
        unique, index = np.unique(fresh, return_inverse=True)
        if len(unique) > self.most_codes:
            self.dropped = True
            best = np.full(len(unique), -NOWHERE, np.int64)
            np.maximum.at(best, index, margin)
            chosen = np.zeros(len(unique), np.bool_)
            chosen[np.argsort(-best, kind="stable")[: self.most_codes]] = True
            part = chosen[index]
            fresh, c, values = fresh[part], c[part], values[:, part]
            unique, index = np.unique(fresh, return_inverse=True)
        table = np.full((len(grid.count), values.shape[0], len(unique)), stages.nothing, stages.dtype)
        scatter(table, c, index, values, stages.merge)
        return unique, table
