"""The most layers that each subset of devices can hold if no stage may take longer than a bound.

There are two tables over all subsets. The one from the last stage to the first says whether the bound can be kept at
all. The one from the first stage to the last says how many layers the search still has to place. Each takes O(S C^2)
time for S subsets of C classes.

Stages may be empty here, which relaxes the problem. So `no` is a proof. For equal layers `yes` is a proof too: stages
can be shortened until each has one layer, as long as there are at least as many layers as stages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from uellm.planner.placement.arrays.grid import Grid, Ints, subset_count

Positions = npt.NDArray[np.int16]


class Reachability:
    """The tables for one bound on the time of a stage and its hop."""

    def __init__(self, grid: Grid, bound: float) -> None:
        self.grid, self.nowhere = grid, grid.layers + 1
        self.reach, self.fits_last = grid.within(bound), grid.fits_last_within(bound)
        positions = np.arange(grid.layers + 1)
        self.able = (self.reach[:, :, 1:] > positions[1:]).any(axis=2)
        first = self.reach[:, :, 0].max(axis=1)
        last = (self.fits_last * (grid.layers - positions)).max(axis=1)
        self.longest = np.maximum(np.maximum((self.reach - positions).max(axis=(1, 2)), first), last)

    def possible(self, sizes: Sequence[int]) -> bool:
        """Whether some subset of one of these sizes can hold all layers."""
        grid = self.grid
        if 1 in sizes and bool(self.fits_last[:, 0].any()):
            return True
        if int(self.longest @ grid.count) < grid.layers:
            return False
        offset = (np.arange(len(grid.count)) * (self.nowhere + 1))[:, None]
        starts, opens = self._starts(), self.reach[:, :, 0]
        codes, table = np.zeros(1, np.int64), self._closing()[:, None]
        for size in range(1, max(sizes) + 1):
            if size > 1:
                if size in sizes and self._opened(codes, table, opens):
                    return True
                index = table + offset
                table = np.stack([np.take(row, index).min(axis=0) for row in starts])
            codes, table = self._grown(codes, table)
            if not len(codes):
                return False
        return False

    def prefixes(self) -> Positions:
        """[C, S]: the furthest end of layers placed from layer 0 on devices of a subset, before a stage on class c."""
        grid = self.grid
        table = np.zeros((len(grid.count), subset_count(grid)), np.int16)
        reach = self.reach.astype(np.int16)
        codes = np.zeros(1, np.int64)
        while len(codes):
            onward = []
            for j, weight in enumerate(grid.weight):
                free = codes[codes // weight % (grid.count[j] + 1) < grid.count[j]]
                if len(free):
                    further = np.maximum(reach[j][:, table[j, free]], table[:, free])
                    table[:, free + weight] = np.maximum(table[:, free + weight], further)
                    onward.append(free + weight)
            codes = np.unique(np.concatenate(onward)) if onward else codes[:0]
        return table

    def _starts(self) -> Positions:
        """[C, C * (L + 2)], by c, and by d and end: the earliest start of a stage on c before d."""
        grid = self.grid
        starts = np.full((*self.able.shape, self.nowhere + 1), self.nowhere, np.int16)
        positions = np.arange(grid.layers + 1)
        for c, d in zip(*np.nonzero(self.able), strict=True):
            earliest = np.searchsorted(self.reach[c, d, 1:], positions) + 1
            starts[c, d, :-1] = np.minimum(earliest, positions)
        return starts.reshape(len(starts), -1)

    def _closing(self) -> Ints:
        fits_last = self.fits_last[:, 1:]
        return np.where(fits_last.any(axis=1), fits_last.argmax(axis=1) + 1, self.nowhere)

    def _opened(self, codes: Ints, table: Ints, opens: Ints) -> bool:
        for c, weight in enumerate(self.grid.weight):
            free = codes // weight % (self.grid.count[c] + 1) < self.grid.count[c]
            if bool((table[:, free] <= opens[c][:, None]).any()):
                return True
        return False

    def _grown(self, codes: Ints, found: Ints) -> tuple[Ints, Ints]:
        """The subsets with one more device that the remaining devices may still complete."""
        grid = self.grid
        left = grid.count[:, None] - codes // grid.weight[:, None] % (grid.count[:, None] + 1)
        still = (self.longest @ left)[None, :] - self.longest[:, None]
        alive = (left > 0) & (found <= still) & (found <= grid.layers)
        c, k = np.nonzero(alive)
        fresh = codes[k] + grid.weight[c]
        marks = np.zeros(subset_count(grid), np.bool_)
        marks[fresh] = True
        unique = np.flatnonzero(marks)
        place = np.empty(subset_count(grid), np.int32)
        place[unique] = np.arange(len(unique), dtype=np.int32)
        table = np.full((len(grid.count), len(unique)), self.nowhere, np.int64)
        table[c, place[fresh]] = found[c, k]
        return unique, table
