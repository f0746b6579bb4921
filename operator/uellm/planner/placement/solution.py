"""A placement as classes and layers, how far a stage may reach, and the best split of layers for a given order."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from uellm.planner.placement.problem import Problem

# Steps in which the shares of devices' rooms are compared: finer ones are rounding.
SHARES = 1 << 32


class StageWindows:
    """How far a stage may extend from layer a: `reach(c, d)[a]` before a stage on class d, `ends[c][a]` to the end.

    Both are non-decreasing in a: a stage that starts later may end later. `reach[a] == a` where not one layer fits.
    """

    def __init__(self, problem: Problem, bound: int | None) -> None:
        self.problem, self.bound = problem, bound
        layers = problem.layers
        self.ends = [
            [problem.fits(c, a, layers) and self._in_time(c, a) for a in range(layers)] + [False]
            for c in problem.classes
        ]
        self._reach: dict[tuple[int, int], list[int]] = {}

    def reach(self, c: int, d: int) -> list[int]:
        """By a: the greatest end of a stage on class c that starts at a, is not the last and precedes class d."""
        # Without a bound on time the window is the same whoever comes next.
        hop = 0 if self.bound is None else self.problem.hop[c][d]
        known = self._reach.get((c, hop))
        if known is None:
            known = self._reach[c, hop] = self._windows(c, hop)
        return known

    def _windows(self, c: int, hop: int) -> list[int]:
        problem, rate, last = self.problem, self.problem.rate[c], self.problem.layers - 1
        ends = []
        for a in range(problem.layers):
            room = problem.memory[a] + problem.room[c] - (problem.first if a == 0 else 0)
            end = bisect_right(problem.memory, room) - 1
            if self.bound is not None and rate:
                end = min(end, bisect_right(problem.work, problem.work[a] + (self.bound - hop) // rate) - 1)
            elif self.bound is not None and hop > self.bound:
                end = a
            ends.append(max(a, min(end, last)))
        return ends

    def _in_time(self, c: int, a: int) -> bool:
        return self.bound is None or self.problem.rate[c] * (self.problem.work[-1] - self.problem.work[a]) <= self.bound


def classes_in(problem: Problem, weights: list[int], code: int) -> list[int]:
    """The classes that `code` counts at least one device of."""
    return [c for c in problem.classes if code // weights[c] % (len(problem.members[c]) + 1)]


def subset_codes(problem: Problem) -> tuple[list[int], list[int]]:
    """The weight of each class in a code, and the number of devices of every code."""
    weights, sizes = [], [0]
    for members in problem.members:
        weights.append(len(sizes))
        sizes = [size + count for count in range(len(members) + 1) for size in sizes]
    return weights, sizes


@dataclass(frozen=True, slots=True)
class Solution:
    """Classes in pipeline order with the layers on each; devices of a class in the order of their ids."""

    classes: tuple[int, ...]
    layers: tuple[int, ...]

    def devices(self, problem: Problem) -> tuple[int, ...]:
        """Indices of the instance's devices: the first of a class goes first."""
        used = [0] * len(problem.members)
        chosen = []
        for c in self.classes:
            chosen.append(problem.members[c][used[c]])
            used[c] += 1
        return tuple(chosen)


def best_split(problem: Problem, order: tuple[int, ...], bound: int | None = None) -> Solution:
    """The layers for a fixed order of classes: least cost; among equals the fullest device is the least full.

    The second rule matters where speeds are equal: every split costs the same then, and the room left for KV cache
    on the tightest device is what tells them apart. Raises ValueError where the order has no split at all.
    """
    windows = StageWindows(problem, bound)
    # by a, from the last stage to the first: (cost, fullest share of a device's room, -end of the stage)
    best: dict[int, tuple[int, int, int]] = {}
    choices: list[dict[int, tuple[int, int, int]]] = []
    for position in range(len(order) - 1, -1, -1):
        best = _extend_by_stage(problem, windows, order, position, best)
        choices.append(best)
    if 0 not in best:
        raise ValueError("no split for this order")
    layers, a = [], 0
    for choice in reversed(choices):
        b = -choice[a][2]
        layers.append(b - a)
        a = b
    return Solution(order, tuple(layers))


def _extend_by_stage(
    problem: Problem,
    windows: StageWindows,
    order: tuple[int, ...],
    position: int,
    onward: dict[int, tuple[int, int, int]],
) -> dict[int, tuple[int, int, int]]:
    c, layers = order[position], problem.layers
    result: dict[int, tuple[int, int, int]] = {}
    if position == len(order) - 1:
        for a in range(layers):
            if windows.ends[c][a]:
                work = problem.rate[c] * (problem.work[layers] - problem.work[a])
                result[a] = (work, _room_share(problem, c, a, layers), -layers)
        return result
    reach, hop = windows.reach(c, order[position + 1]), problem.hop[c][order[position + 1]]
    for a in range(layers) if position else (0,):
        ends = (b for b in range(a + 1, reach[a] + 1) if b in onward)
        options = (
            (
                problem.rate[c] * (problem.work[b] - problem.work[a]) + hop + onward[b][0],
                max(_room_share(problem, c, a, b), onward[b][1]),
                -b,
            )
            for b in ends
        )
        if (option := min(options, default=None)) is not None:
            result[a] = option
    return result


def _room_share(problem: Problem, c: int, a: int, b: int) -> int:
    return round(problem.need(a, b) / problem.room[c] * SHARES) if problem.room[c] > 0 else SHARES
