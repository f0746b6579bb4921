"""The two baseline policies: greedy best fit (BGS), and vLLM's own even split (Even)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, permutations

from uellm.planner.placement.problem import Problem
from uellm.planner.placement.solution import Solution
from uellm.planner.vllm.partition import even_split

# Above this many orders, the even split is tried on the devices with the most room only, in one order.
MOST_ORDERS = 50_000


def greedy_best_fit(problem: Problem, rank: Sequence[int], stages: int | None = None) -> Solution | None:
    """Greedy best fit: the smallest device that holds all remaining layers; if none does, fill the largest.

    With `stages`, exactly that many devices are used: each stage leaves one layer at least to every later stage.
    `rank` [n]: position of each device in the order of the ids. None if the greedy choice finds no placement.
    """
    left = [c for c in problem.classes for _ in problem.members[c]]
    order: list[int] = []
    ends: list[int] = [0]
    while ends[-1] < problem.layers:
        a, to_follow = ends[-1], 0 if stages is None else stages - len(order) - 1
        most = {c: _furthest(problem, c, a, problem.layers - to_follow) for c in set(left)}
        finishing = [c for c in set(left) if to_follow == 0 and most[c] == problem.layers]
        if finishing:
            choice = min(finishing, key=lambda c: (problem.room[c], _first_rank(problem, c, rank, order)))
        else:
            growing = [c for c in set(left) if most[c] > a]
            if not growing or to_follow < 0 or (stages is not None and to_follow == 0):
                return None
            choice = min(growing, key=lambda c: (-most[c], -problem.room[c], _first_rank(problem, c, rank, order)))
        left.remove(choice)
        order.append(choice)
        ends.append(most[choice])
    return Solution(tuple(order), tuple(b - a for a, b in pairwise(ends)))


def _furthest(problem: Problem, c: int, a: int, limit: int) -> int:
    """The greatest b <= limit such that layers a..b-1 fit on a device of class c; a if not even one layer fits."""
    return next((b for b in range(limit, a, -1) if problem.fits(c, a, b)), a)


def _first_rank(problem: Problem, c: int, rank: Sequence[int], order: list[int]) -> int:
    return rank[problem.members[c][order.count(c)]]


def even(
    problem: Problem, rank: Sequence[int], cost: Callable[[Solution], int], stages: int | None = None
) -> Solution | None:
    """vLLM's even split over the fewest devices on which it fits, in the cheapest order; ties by the order of ids."""
    sizes = range(1, min(problem.devices, problem.layers) + 1) if stages is None else (stages,)
    for size in sizes:
        layers = even_split(problem.layers, size)
        if min(layers) < 1 or size > problem.devices:
            continue
        fitting = [Solution(order, layers) for order in _orders(problem, size) if _holds(problem, order, layers)]
        if fitting:
            return min(fitting, key=lambda s: (cost(s), tuple(rank[device] for device in s.devices(problem))))
    return None


def _orders(problem: Problem, size: int) -> set[tuple[int, ...]]:
    pool = [c for c in problem.classes for _ in problem.members[c]]
    count = 1
    for factor in range(len(pool) - size + 1, len(pool) + 1):
        count *= factor
    if len(set(pool)) > 1 and count > MOST_ORDERS:
        roomy = sorted(pool, key=lambda c: (-problem.room[c], c))[:size]
        return {tuple(sorted(roomy))}
    if len(set(pool)) == 1:
        return {tuple(pool[:size])}
    return set(permutations(pool, size))


def _holds(problem: Problem, order: tuple[int, ...], layers: tuple[int, ...]) -> bool:
    a = 0
    for c, count in zip(order, layers, strict=True):
        if not problem.fits(c, a, a + count):
            return False
        a += count
    return True
