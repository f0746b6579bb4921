"""The placement problem as arrays, for solvers that work on many states at once.

Costs are whole numbers below 2**53 in float64. Their sums are exact in any order, and numpy adds and compares them
fast. The grid of costs is as fine as 53 bits allow. `tolerance` bounds the sum of all rounding errors: costs that
differ by no more are treated as equal.
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
    """A problem with C classes and L layers as arrays; costs in steps of `2**shift` units of the problem.

    Indices c and d are classes; a and b are layer positions 0..L.
    """

    problem: Problem
    shift: int
    tolerance: float
    """Costs that differ by no more count as equal."""
    device_cost: float
    """Cost of using one more device."""
    time: Costs
    """[C, L + 1]: time of layers 0..b-1 on class c."""
    hop: Costs
    """[C, C]."""
    count: Ints
    """[C]: devices in the class."""
    weight: Ints
    """[C]: weight of the class in the mixed-radix code of a subset."""
    reach: Ints
    """[C, L + 1]: greatest end of a stage that starts at a and is not the last; a if not even one layer fits."""
    fits_last: npt.NDArray[np.bool_]
    """[C, L + 1]: whether layers a..L-1 fit as the last stage."""
    twins: tuple[tuple[int, ...], ...]
    """Groups of two or more classes that can be exchanged as a whole: nodes that are built alike."""
    most: int = field(default=0)
    """The most devices that a placement can use."""

    @property
    def layers(self) -> int:
        """L."""
        return self.problem.layers

    def within(self, bound: float) -> Ints:
        """[C, C, L + 1], by c, d and a: `reach` if the stage and its hop to d may take at most `bound`."""
        room = bound + self.tolerance - self.hop
        ends = np.empty((*self.hop.shape, self.layers + 1), np.int64)
        for c, time in enumerate(self.time):
            ends[c] = np.searchsorted(time, time[None, :] + room[c, :, None], side="right") - 1
        positions = np.arange(self.layers + 1)
        result: Ints = np.maximum(np.minimum(ends, self.reach[:, None, :]), positions)
        return result

    def fits_last_within(self, bound: float) -> npt.NDArray[np.bool_]:
        """[C, L + 1]: `fits_last` if the last stage may take at most `bound`."""
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
        device_cost=float(_shifted(min(dearest, device) if device is not None else dearest, shift)),
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
    """The number of subsets of devices, S = prod(count + 1)."""
    return int(grid.weight[-1]) * int(grid.count[-1] + 1)


def _shifted(value: int, shift: int) -> int:
    return (value + (1 << shift >> 1)) >> shift


def _times(problem: Problem, shift: int) -> Costs:
    by_rate = {
        rate: [float(_shifted(rate * work, shift)) for work in problem.work] for rate in dict.fromkeys(problem.rate)
    }
    return np.array([by_rate[rate] for rate in problem.rate], np.float64)


def _twins(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """Groups of classes of which any two can be exchanged."""
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
    # Two classes of one device each that could be exchanged would be one class.
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
    """[rows, windows, k]: the minimum of `values[row, start : start + length, :]`; INFINITE for an empty window.

    `values` [rows, width, k]; `start` and `length` [rows, windows]. A sparse table of minima over spans 1, 2, 4..
    answers each window with two look-ups: O(rows * (width log width + windows) * k).
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
