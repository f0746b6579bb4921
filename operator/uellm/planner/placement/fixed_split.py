"""The best order of devices for a given split of the layers: the user's, or an even one.

    g[S][i] = the least cost of the last |S| stages on exactly the devices S, the first of them on i
            = rate_i * work(stage) + min over j of (hop[i][j] + g[S\\{i}][j])       where the stage fits on i

This is the dynamic programme of Held and Karp (1962, doi:10.1137/0110015): O(2^n n^2) for n devices. The stage follows
from |S|, so the layers need no dimension of their own. Of equal costs, the order of the ids decides.
"""

from __future__ import annotations

from itertools import accumulate

from uellm.planner.placement.instance import Instance
from uellm.planner.placement.problem import Problem, canonical
from uellm.planner.placement.solution import Solution, classes_in, subset_codes
from uellm.planner.placement.solver import Placement, to_placement
from uellm.planner.refusals.placement import EmptyStage, StageTooLarge, TooFewDevices
from uellm.planner.spans import spans

# The most subsets times classes for which the search is exact: ten devices, all different.
MOST_STATES = 12_000

Entry = tuple[int, tuple[int, ...]]


def place_fixed(instance: Instance, layers: tuple[int, ...], objective: str = "latency") -> Placement:
    """The best order for this split, `layers` [k]; a refusal if no order fits."""
    problem = canonical(instance)
    if min(layers) < 1:
        return Placement(False, refusal=EmptyStage(len(layers), problem.layers))
    if len(layers) > problem.devices:
        return Placement(False, refusal=TooFewDevices(len(layers), problem.devices))
    if len(subset_codes(problem)[1]) * len(problem.members) > MOST_STATES:
        order = _by_room(problem, layers)
    else:
        order = _cheapest(problem, layers, objective)
    return (
        _refusal(problem, layers)
        if order is None
        else to_placement(instance, problem, Solution(order, layers), objective)
    )


def _cheapest(problem: Problem, layers: tuple[int, ...], objective: str) -> tuple[int, ...] | None:
    weights, sizes = subset_codes(problem)
    table: list[dict[int, Entry]] = [{} for _ in sizes]
    table[0][0] = (0, ())
    ends = list(accumulate(layers))
    for code, count in enumerate(sizes):
        if 1 <= count <= len(layers):
            a, b = ends[-count] - layers[-count], ends[-count]
            for c in classes_in(problem, weights, code):
                time = problem.rate[c] * (problem.work[b] - problem.work[a])
                if problem.fits(c, a, b) and (entry := _entry(problem, c, time, table[code - weights[c]], objective)):
                    table[code][c] = entry
    found = [entry for code, count in enumerate(sizes) if count == len(layers) for entry in table[code].values()]
    return min(found)[1] if found else None


def _entry(problem: Problem, c: int, time: int, onward: dict[int, Entry], objective: str) -> Entry | None:
    """The best continuation of a stage on class c. `onward`: entries of the later stages, by class of the first."""
    options = []
    for d, (cost, order) in onward.items():
        own = time + (problem.hop[c][d] if order else 0)
        options.append((max(own, cost) if objective == "bottleneck" else own + cost, (c, *order)))
    return min(options, default=None)


def _by_room(problem: Problem, layers: tuple[int, ...]) -> tuple[int, ...] | None:
    """The order that gives the largest stage the largest room. It fits if any order does; its cost is not minimised."""
    needs = _needs(problem, layers)
    pool = sorted((c for c in problem.classes for _ in problem.members[c]), key=lambda c: -problem.room[c])
    order = [0] * len(layers)
    for stage, c in zip(sorted(range(len(layers)), key=lambda stage: -needs[stage]), pool, strict=False):
        if needs[stage] > problem.room[c]:
            return None
        order[stage] = c
    return tuple(order)


def _needs(problem: Problem, layers: tuple[int, ...]) -> list[int]:
    return [problem.need(a, b) for a, b in spans(layers)]


def _refusal(problem: Problem, layers: tuple[int, ...]) -> Placement:
    needs = _needs(problem, layers)
    rooms = sorted((problem.room[c] for c in problem.classes for _ in problem.members[c]), reverse=True)
    wanted = sorted(needs, reverse=True)
    short = next((need, room) for need, room in zip(wanted, rooms, strict=False) if need > room)
    stage = needs.index(short[0])
    need_bytes, have_bytes = (count // problem.byte for count in short)
    return Placement(False, refusal=StageTooLarge(stage, layers[stage], need_bytes, have_bytes))
