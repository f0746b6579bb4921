"""A placement by classes, the stages that fit on a device, and the best split of layers for a given order."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from uellm.planner.placement.problem import Problem

# Resolution at which the used shares of devices' rooms are compared: finer differences are rounding.
SHARES = 1 << 32


class StageWindows:
    """The stages that fit in memory and, with a `bound`, take no longer than it (units of cost).

    `reach(c, d)[a]` is the greatest end of a stage on class c that starts at layer a and precedes class d; it is a if
    not even one layer fits. `ends[c][a]` says whether layers a..L-1 fit as the last stage. Both are non-decreasing in
    a: a stage that starts later may end later.
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
        """[L], by start a: the greatest end of a stage on class c that precedes class d and is not the last stage."""
        # Without a bound on time, the next class does not matter.
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
    """The classes with at least one device in the subset `code`."""
    return [c for c in problem.classes if code // weights[c] % (len(problem.members[c]) + 1)]


def subset_codes(problem: Problem) -> tuple[list[int], list[int]]:
    """Subsets of devices as mixed-radix codes: the weight of each class [C], and the devices in each subset [S].

    Digit c of a code is the number of devices of class c, from 0 to the size of the class, so S = prod(size_c + 1).
    """
    weights, sizes = [], [0]
    for members in problem.members:
        weights.append(len(sizes))
        sizes = [size + count for count in range(len(members) + 1) for size in sizes]
    return weights, sizes


@dataclass(frozen=True, slots=True)
class Solution:
    """A placement on k stages, by the classes of their devices."""

    classes: tuple[int, ...]
    """[k]: in pipeline order."""
    layers: tuple[int, ...]
    """[k]: number of layers on each stage."""

    def devices(self, problem: Problem) -> tuple[int, ...]:
        """[k]: indices of the instance's devices. The devices of a class are used in the order of their ids."""
        used = [0] * len(problem.members)
        chosen = []
        for c in self.classes:
            chosen.append(problem.members[c][used[c]])
            used[c] += 1
        return tuple(chosen)


def best_split(problem: Problem, order: tuple[int, ...], bound: int | None = None) -> Solution:
    """The cheapest split of the layers for a fixed order of k classes, by dynamic programming in O(k L^2).

    Of equally cheap splits it is the one whose fullest device is the least full. That rule decides if devices are
    equally fast: all splits then cost the same, and differ in the room for KV cache on the tightest device.
    `bound`: the most time that a stage may take. Raises ValueError if no split fits.
    """
    windows = StageWindows(problem, bound)
    # By start a, from the last stage to the first: (cost, largest share of a device's room, -end of the stage).
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
