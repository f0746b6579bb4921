"""The exact solver: the cheapest placement for every number of stages, by dynamic programming over suffixes.

Let f[S][i][a] be the least cost of layers a..L-1 on exactly the devices S, the first of which is i:

    f[{i}][i][a] = rate_i * (W[L] - W[a])                                        if layers a.. fit on i
    f[S][i][a]   = min over j in S\\{i}, a < b <= reach_i,j(a) of
                   rate_i * (W[b] - W[a]) + hop[i][j] + f[S\\{i}][j][b]

W are prefix sums of work; reach is how far the stage may extend for its memory (and, with a bound on the slowest
stage, its time). The inner minimum is one over a sliding window of `rate_i * W[b] + g[b]`, so a state costs O(L + L*n)
and all of them O(2^n * n^2 * L); interchangeable devices are counted instead of named (canonical.py).

Why not greedy: filling the fastest device first is wrong as soon as hops cost something. Four layers, device x with
room for two at cost 1 a layer, device y with room for four at cost 2, a hop of 5: greedy takes x and y for
2 + 4 + 5 = 11, and y alone costs 8.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass

from uellm.planner.placement.problem import Problem

Vector = list[int]
# Steps in which the shares of devices' rooms are compared: finer ones are rounding.
SHARES = 1 << 32


class Table:
    """f for every multiset of devices, as `vectors[code][class]`; a code counts devices by class in mixed radix."""

    def __init__(self, problem: Problem, most_stages: int, bound: int | None = None) -> None:
        self.problem = problem
        self.bound = bound
        self.windows = Windows(problem, bound)
        # By class and position: the cost of all layers before it.
        self.spent = [[rate * work for work in problem.work] for rate in problem.rate]
        slowest = max(problem.rate) * problem.work[-1] + problem.devices * max(map(max, problem.hop))
        self.infinite = 2 * slowest + 1
        self.weights, self.size_of = codes(problem)
        self.vectors: list[dict[int, Vector]] = [{} for _ in self.size_of]
        for code, size in enumerate(self.size_of):
            if 1 <= size <= min(most_stages, problem.layers):
                self._fill(code)

    def best(self, stages: int) -> int | None:
        """The least cost with exactly so many stages, None where there is none."""
        costs = [
            vector[0]
            for code, size in enumerate(self.size_of)
            if size == stages
            for vector in self.vectors[code].values()
            if vector[0] < self.infinite
        ]
        return min(costs, default=None)

    def _fill(self, code: int) -> None:
        for c in classes_in(self.problem, self.weights, code):
            rest = code - self.weights[c]
            vector = self._alone(c) if rest == 0 else self._before(c, rest)
            if min(vector) < self.infinite:
                self.vectors[code][c] = vector

    def _alone(self, c: int) -> Vector:
        spent, ends = self.spent[c], self.windows.ends[c]
        return [spent[-1] - before if fits else self.infinite for before, fits in zip(spent, ends, strict=True)]

    def _before(self, c: int, rest: int) -> Vector:
        """The vector of a stage on class c in front of what `rest` does best."""
        onward: dict[int, tuple[list[int], Vector]] = {}
        for d, vector in self.vectors[rest].items():
            reach, hop = self.windows.reach(c, d), self.problem.hop[c][d]
            shifted = [value + hop for value in vector]
            if id(reach) in onward:
                shifted = list(map(min, onward[id(reach)][1], shifted))
            onward[id(reach)] = (reach, shifted)
        best = [self.infinite] * (self.problem.layers + 1)
        for reach, cheapest in onward.values():
            self._slide(c, reach, cheapest, best)
        return best

    def _slide(self, c: int, reach: list[int], onward: Vector, best: Vector) -> None:
        """Lower `best[a]` to min over a < b <= reach[a] of cost(a..b) + onward[b]."""
        spent, infinite = self.spent[c], self.infinite
        finite = [b for b, value in enumerate(onward) if value < infinite]
        if not finite:
            return
        window: deque[tuple[int, int]] = deque()
        # Outside of these positions no b is in reach.
        for a in range(finite[-1] - 1, bisect_left(reach, finite[0]) - 1, -1):
            if onward[a + 1] < infinite:
                value = spent[a + 1] + onward[a + 1]
                while window and window[-1][0] >= value:
                    window.pop()
                window.append((value, a + 1))
            end = reach[a]
            while window and window[0][1] > end:
                window.popleft()
            if window:
                best[a] = min(best[a], window[0][0] - spent[a])


class Windows:
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
        self._widest: dict[int, int] = {}
        self._masks: dict[int, list[int]] = {}

    def reach(self, c: int, d: int) -> list[int]:
        """By a: the greatest end of a stage on class c that starts at a, is not the last and precedes class d."""
        # Without a bound on time the window is the same whoever comes next.
        hop = 0 if self.bound is None else self.problem.hop[c][d]
        known = self._reach.get((c, hop))
        if known is None:
            known = self._reach[c, hop] = self._windows(c, hop)
            self._widest[id(known)] = max(end - a for a, end in enumerate(known))
            self._masks[id(known)] = [(1 << (end + 1)) - (1 << (a + 1)) for a, end in enumerate(known)]
        return known

    def widest(self, reach: list[int]) -> int:
        """The most layers that a window of `reach` allows."""
        return self._widest[id(reach)]

    def masks(self, reach: list[int]) -> list[int]:
        """By a: the ends in reach, as bits."""
        return self._masks[id(reach)]

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


def codes(problem: Problem) -> tuple[list[int], list[int]]:
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


def trace(table: Table, stages: int, cost: int, rank: list[int]) -> Solution:
    """A placement of that cost: of all that have it, the first by the ids' order; then the evenest (see `settle`).

    `rank` orders the instance's devices by id.
    """
    candidates: dict[int, set[tuple[int, int]]] = {}
    for code, size in enumerate(table.size_of):
        for c, vector in table.vectors[code].items() if size == stages else ():
            if vector[0] == cost:
                candidates.setdefault(c, set()).add((code, 0))
    used = [0] * len(table.problem.members)
    order: list[int] = []
    while candidates:
        c = min(candidates, key=lambda c: rank[table.problem.members[c][used[c]]])
        used[c] += 1
        order.append(c)
        candidates = _onward(table, c, candidates[c])
    return settle(table.problem, tuple(order), table.bound)


def _onward(table: Table, c: int, states: set[tuple[int, int]]) -> dict[int, set[tuple[int, int]]]:
    """From states (code, a) whose first stage is on class c: by next class, the states that keep the cost."""
    problem, onward = table.problem, dict[int, set[tuple[int, int]]]()
    for code, a in states:
        rest, target = code - table.weights[c], table.vectors[code][c][a]
        for d, vector in table.vectors[rest].items():
            spent = target - problem.hop[c][d] + problem.rate[c] * problem.work[a]
            for b in range(a + 1, table.windows.reach(c, d)[a] + 1):
                if vector[b] + problem.rate[c] * problem.work[b] == spent:
                    onward.setdefault(d, set()).add((rest, b))
    return onward


def settle(problem: Problem, order: tuple[int, ...], bound: int | None = None) -> Solution:
    """The layers for a fixed order of classes: least cost; among equals the fullest device is the least full.

    The second rule matters where speeds are equal: every split costs the same then, and the room left for KV cache
    on the tightest device is what tells them apart. Raises ValueError where the order has no split at all.
    """
    windows = Windows(problem, bound)
    # by a, from the last stage to the first: (cost, fullest share of a device's room, -end of the stage)
    best: dict[int, tuple[int, int, int]] = {}
    choices: list[dict[int, tuple[int, int, int]]] = []
    for position in range(len(order) - 1, -1, -1):
        best = _stage(problem, windows, order, position, best)
        choices.append(best)
    if 0 not in best:
        raise ValueError("no split for this order")
    layers, a = [], 0
    for choice in reversed(choices):
        b = -choice[a][2]
        layers.append(b - a)
        a = b
    return Solution(order, tuple(layers))


def _stage(
    problem: Problem,
    windows: Windows,
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
                result[a] = (work, _share(problem, c, a, layers), -layers)
        return result
    reach, hop = windows.reach(c, order[position + 1]), problem.hop[c][order[position + 1]]
    for a in range(layers) if position else (0,):
        ends = (b for b in range(a + 1, reach[a] + 1) if b in onward)
        options = (
            (
                problem.rate[c] * (problem.work[b] - problem.work[a]) + hop + onward[b][0],
                max(_share(problem, c, a, b), onward[b][1]),
                -b,
            )
            for b in ends
        )
        if (option := min(options, default=None)) is not None:
            result[a] = option
    return result


def _share(problem: Problem, c: int, a: int, b: int) -> int:
    return round(problem.need(a, b) / problem.room[c] * SHARES) if problem.room[c] > 0 else SHARES
