"""Good placements and a lower bound, for instances with more different devices than the exact solver takes.

Candidates are sets of k devices: the fastest, those with the most room, and mixtures of the two. Each set is ordered
by the cheapest of its nearest-neighbour walks, and the layers of an order are split exactly. The lower bound relaxes
the problem: work may be divided anywhere, and every hop costs as much as the cheapest one.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

from uellm.planner.placement.problem import Problem
from uellm.planner.placement.solution import Solution, StageWindows, best_split

# First devices tried for each set.
MOST_STARTS = 8
# Steps between the set of the fastest devices and the set of those with the most room.
MIXTURES = 4


def candidates(problem: Problem, size: int, *, bottleneck: bool) -> Iterator[tuple[Solution, int]]:
    """Placements on `size` devices, each with the time of its slowest stage in units of cost.

    The time is 0 unless `bottleneck` asks for the placement whose slowest stage is the fastest.
    """
    for chosen in _device_choices(problem, size):
        order = _nearest_neighbour_order(problem, chosen)
        bound = _order_bottleneck(problem, order) if bottleneck else None
        if bottleneck and bound is None:
            continue
        try:
            yield best_split(problem, order, bound), bound or 0
        except ValueError:
            continue


def _device_choices(problem: Problem, size: int) -> list[tuple[int, ...]]:
    pool = [c for c in problem.classes for _ in problem.members[c] if problem.room[c] > 0]
    if len(pool) < size:
        return []
    fast = sorted(pool, key=lambda c: (problem.rate[c], -problem.room[c], c))
    roomy = sorted(pool, key=lambda c: (-problem.room[c], problem.rate[c], c))
    sets = set()
    for keep in {size * step // MIXTURES for step in range(MIXTURES + 1)}:
        rest = list(roomy)
        for c in fast[:keep]:
            rest.remove(c)
        chosen = fast[:keep] + rest[: size - keep]
        if sum(problem.room[c] for c in chosen) >= problem.need(0, problem.layers):
            sets.add(tuple(sorted(chosen)))
    return sorted(sets)


def _nearest_neighbour_order(problem: Problem, chosen: tuple[int, ...]) -> tuple[int, ...]:
    walks = [_walk(problem, chosen, start) for start in sorted(set(chosen))[:MOST_STARTS]]
    return min(walks, key=lambda walk: (sum(problem.hop[c][d] for c, d in pairwise(walk)), walk))


def _walk(problem: Problem, chosen: tuple[int, ...], start: int) -> tuple[int, ...]:
    left, walk = list(chosen), [start]
    left.remove(start)
    while left:
        following = min(left, key=lambda c: (problem.hop[walk[-1]][c], c))
        left.remove(following)
        walk.append(following)
    return tuple(walk)


def _order_bottleneck(problem: Problem, order: tuple[int, ...]) -> int | None:
    """The least time of the slowest stage for a fixed order of k classes; None if no split fits.

    Dynamic programming from the last stage to the first, in O(k L^2).
    """
    windows, work, layers = StageWindows(problem, None), problem.work, problem.layers
    last = order[-1]
    best = {a: problem.rate[last] * (work[layers] - work[a]) for a in range(layers) if windows.ends[last][a]}
    for position in range(len(order) - 2, -1, -1):
        c, d = order[position], order[position + 1]
        reach, hop = windows.reach(c, d), problem.hop[c][d]
        onward, best = best, {}
        for a in range(layers):
            times = [
                max(problem.rate[c] * (work[b] - work[a]) + hop, onward[b])
                for b in range(a + 1, reach[a] + 1)
                if b in onward
            ]
            if times:
                best[a] = min(times)
    return best.get(0)


def latency_bound(problem: Problem, stages: int) -> int:
    """A lower bound on the latency of any placement: all work on the fastest devices, and the cheapest hops."""
    left, cost = Fraction(problem.work[-1]), Fraction(0)
    for c in sorted(problem.classes, key=lambda c: problem.rate[c]):
        poured = min(left, _max_work(problem, c) * len(problem.members[c]))
        cost += poured * problem.rate[c]
        left -= poured
    return int(cost) + (stages - 1) * _min_hop(problem)


def bottleneck_bound(problem: Problem) -> int:
    """A lower bound on the slowest stage's time: work divided over all devices by speed, and free hops."""
    speeds = [Fraction(len(problem.members[c]), problem.rate[c]) for c in problem.classes if problem.rate[c]]
    if len(speeds) < len(problem.classes):
        return 0
    return int(problem.work[-1] / sum(speeds))


def _max_work(problem: Problem, c: int) -> Fraction:
    """An upper bound on the work that fits on one device, by the layer with the most work per byte of memory."""
    dense = max(
        Fraction(problem.work[index + 1] - problem.work[index], problem.memory[index + 1] - problem.memory[index])
        for index in range(problem.layers)
    )
    return max(Fraction(0), problem.room[c] * dense)


def _min_hop(problem: Problem) -> int:
    hops = [
        problem.hop[c][d] for c in problem.classes for d in problem.classes if c != d or len(problem.members[c]) > 1
    ]
    return min(hops, default=0)
