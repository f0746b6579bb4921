"""The least time that the slowest stage can have: what sets the throughput of a filled pipeline.

A stage's time is its work plus the hop to the next stage. For a bound B, the layers a from which the rest can be
placed within B form a set, kept as the bits of one integer per state (devices used, first of them); B is found by
bisection over the times that a stage can have at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from uellm.planner.placement.lists.dynamic_program import Windows, classes_in, codes
from uellm.planner.placement.problem import Problem


def least_bottleneck(problem: Problem, sizes: Sequence[int]) -> int | None:
    """The least achievable time of the slowest stage with any number of stages in `sizes`; None if none fits."""
    times = _times(problem)
    if not _reachable(problem, sizes, times[-1]):
        return None
    low, high = 0, len(times) - 1
    while low < high:
        middle = (low + high) // 2
        if _reachable(problem, sizes, times[middle]):
            high = middle
        else:
            low = middle + 1
    return times[low]


def _times(problem: Problem) -> list[int]:
    """Every time that some stage can have, ascending."""
    work, positions = problem.work, range(problem.layers)
    if problem.uniform:
        amounts = set(work[1:])
    else:
        amounts = {work[b] - work[a] for a in positions for b in range(a + 1, problem.layers + 1)}
    times: set[int] = set()
    for c in problem.classes:
        hops = {0, *problem.hop[c]}
        times.update(problem.rate[c] * amount + hop for amount in amounts for hop in hops)
    return sorted(times)


def _reachable(problem: Problem, sizes: Sequence[int], bound: int) -> bool:
    windows, most = Windows(problem, bound), max(sizes)
    weights, size_of = codes(problem)
    starts: list[dict[int, int]] = [{} for _ in size_of]
    for code, size in enumerate(size_of):
        if not 1 <= size <= most:
            continue
        for c in classes_in(problem, weights, code):
            rest = code - weights[c]
            bits = _alone(windows, c) if rest == 0 else _before(problem, windows, c, starts[rest])
            if bits:
                starts[code][c] = bits
                if bits & 1 and size in sizes:
                    return True
    return False


def _alone(windows: Windows, c: int) -> int:
    return sum(1 << a for a, reaches in enumerate(windows.ends[c]) if reaches)


def _before(problem: Problem, windows: Windows, c: int, onward: dict[int, int]) -> int:
    """Bits a from which a stage on class c can end where the rest can start."""
    found = 0
    for d, bits in onward.items():
        reach = windows.reach(c, d)
        if problem.uniform:
            # The first stage holds the embedding too, so its window alone may be shorter.
            found |= _spread(bits, windows.widest(reach)) & ~1
            found |= bool(bits & windows.masks(reach)[0])
        else:
            found |= sum(1 << a for a, within in enumerate(windows.masks(reach)) if bits & within)
    return found


def _spread(bits: int, width: int) -> int:
    """Bits a for which any of a+1..a+width is set, in O(log width) operations."""
    if width < 1:
        return 0
    covered, span = bits >> 1, 1
    while span < width:
        step = min(span, width - span)
        covered |= covered >> step
        span += step
    return covered
