"""The placement problem as arrays, for the solvers that work on many states at once.

Costs are whole numbers below 2**53 held in float64: sums are exact, whatever their order, and additions and minima
run at the machine's speed. The grid is as fine as that allows; `ties` is what rounding to it may add up to, so costs
that differ by less are equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from uellm.planner.placement.problem import Problem
from uellm.planner.placement.solution import StageWindows

Costs = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
INFINITE = float("inf")
SIGNIFICANT_BITS = 52


@dataclass(frozen=True, slots=True)
class Grid:
    """Index c, d: class; a, b: layer position 0..layers. Costs in steps of `2**shift` units of the problem."""

    problem: Problem
    shift: int
    tolerance: float
    device: float  # cost of one device more
    time: Costs  # [c, b]: of all layers before b
    hop: Costs  # [c, d]
    count: Ints  # [c]: devices of the class
    weight: Ints  # [c]: of the class in a code
    reach: Ints  # [c, a]: the greatest end of a stage from a that is not the last; a where not one layer fits
    fits_last: npt.NDArray[np.bool_]  # [c, a]: whether layers a.. fit as the last stage
    twins: tuple[tuple[int, ...], ...]  # classes that may be exchanged as a whole, where there are two or more
    most: int = field(default=0)  # devices that a placement can use at most

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return self.problem.layers

    def within(self, bound: float) -> Ints:
        """By c, d and a: `reach` where the stage and the hop to d must take no longer than `bound`."""
        room = bound + self.tolerance - self.hop
        ends = np.empty((*self.hop.shape, self.layers + 1), np.int64)
        for c, time in enumerate(self.time):
            ends[c] = np.searchsorted(time, time[None, :] + room[c, :, None], side="right") - 1
        positions = np.arange(self.layers + 1)
        result: Ints = np.maximum(np.minimum(ends, self.reach[:, None, :]), positions)
        return result

    def fits_last_within(self, bound: float) -> npt.NDArray[np.bool_]:
        """By c and a: `closes` where the last stage must take no longer than `bound`."""
        result: npt.NDArray[np.bool_] = self.fits_last & (self.time[:, -1:] - self.time <= bound + self.tolerance)
        return result


def grid(problem: Problem, device: int | None) -> Grid:
    """The grid of a problem. `device`: cost of a device in the problem's units; None: more than any latency."""
    most = min(problem.devices, problem.layers)
    hops = max(map(max, problem.hop))
    latency = max(problem.rate) * problem.work[-1] + most * hops
    shift = max(0, latency.bit_length() + (most + 1).bit_length() - SIGNIFICANT_BITS)
    windows = StageWindows(problem, None)
    reach = np.array([[*windows.reach(c, c), problem.layers] for c in problem.classes], np.int64)
    sizes = [len(members) for members in problem.members]
    weights = [1]
    for size in sizes:
        weights.append(weights[-1] * (size + 1))
    dearest = latency + 1
    return Grid(
        problem=problem,
        shift=shift,
        tolerance=float(4 * most),
        device=float(_shifted(min(dearest, device) if device is not None else dearest, shift)),
        time=_times(problem, shift),
        hop=np.array([[_shifted(value, shift) for value in row] for row in problem.hop], np.float64),
        count=np.array(sizes, np.int64),
        weight=np.array(weights[:-1], np.int64),
        reach=reach,
        fits_last=np.array(windows.ends, np.bool_),
        twins=_twins(problem),
        most=most,
    )


def subset_count(grid: Grid) -> int:
    """How many sets of devices there are."""
    return int(grid.weight[-1]) * int(grid.count[-1] + 1)


def _shifted(value: int, shift: int) -> int:
    return (value + (1 << shift >> 1)) >> shift


def _times(problem: Problem, shift: int) -> Costs:
    by_rate = {
        rate: [float(_shifted(rate * work, shift)) for work in problem.work] for rate in dict.fromkeys(problem.rate)
    }
    return np.array([by_rate[rate] for rate in problem.rate], np.float64)


def _twins(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """Groups of classes of which any two may be exchanged: nodes that are built alike."""
    groups: list[list[int]] = []
    for c in problem.classes:
        for group in groups:
            if _alike(problem, group[0], c):
                group.append(c)
                break
        else:
            groups.append([c])
    return tuple(tuple(group) for group in groups if len(group) > 1)


def _alike(problem: Problem, c: int, d: int) -> bool:
    # Alone in its class a device could be a twin only if it were interchangeable, and then it would not be alone.
    size = len(problem.members[c])
    if size == 1 or size != len(problem.members[d]):
        return False
    hop = problem.hop
    if (problem.room[c], problem.rate[c], hop[c][c]) != (problem.room[d], problem.rate[d], hop[d][d]):
        return False
    return hop[c][d] == hop[d][c] and all(
        hop[c][e] == hop[d][e] and hop[e][c] == hop[e][d] for e in problem.classes if e not in (c, d)
    )


def window_min(values: Costs, start: Ints, length: Ints) -> Any:
    """By row and window: the least of `values[row, start : start + length, :]`; INFINITE for an empty window.

    `values` [rows, width, k], `start` and `length` [rows, windows]; tables of spans 1, 2, 4.. make it two looks each.
    """
    longest = int(length.max(initial=0))
    rows, width, k = values.shape
    if longest <= 0:
        return np.full((rows, start.shape[1], k), INFINITE)
    levels = longest.bit_length()
    tables = np.empty((levels, *values.shape))
    tables[0] = values
    for level in range(1, levels):
        span = 1 << (level - 1)
        tables[level] = tables[level - 1]
        np.minimum(
            tables[level - 1, :, : width - span], tables[level - 1, :, span:], out=tables[level, :, : width - span]
        )
    level_of = np.frexp(np.maximum(length, 1))[1] - 1
    empty = length <= 0
    row = np.arange(rows)[:, None]
    first = np.where(empty, 0, start)
    second = np.where(empty, 0, start + length - (1 << level_of))
    found = np.minimum(tables[level_of, row, first], tables[level_of, row, second])
    if empty.any():
        found[empty] = INFINITE
    return found
