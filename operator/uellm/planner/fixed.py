"""The best order of devices for layers that are given stage by stage: the user's split, or an even one.

    g[S][i] = the least cost of the last |S| stages on exactly the devices S, the first of them on i
            = rate_i * work(stage) + min over j of (hop[i][j] + g[S\\{i}][j])       where the stage fits on i

The stage is known from |S|, so the layers need no dimension of their own. Equal costs: the ids' order decides.
"""

from __future__ import annotations

from uellm.planner.canonical import Problem, canonical
from uellm.planner.exact import Solution, codes
from uellm.planner.infeasible import size
from uellm.planner.instance import Instance
from uellm.planner.place import MOST_EXACT_STATES, Placement, answer

Entry = tuple[int, tuple[int, ...]]


def place_fixed(instance: Instance, layers: tuple[int, ...], objective: str = "latency") -> Placement:
    """The best order for exactly these layers; infeasible, with the reason, where no order fits."""
    problem = canonical(instance)
    if len(layers) > problem.devices:
        return Placement(False, reason=f"{len(layers)} stages need as many devices; there are {problem.devices}")
    weights, sizes = codes(problem)
    if len(sizes) * len(problem.members) > MOST_EXACT_STATES:
        order = _by_room(problem, layers)
        return (
            _refusal(problem, layers)
            if order is None
            else answer(instance, problem, Solution(order, layers), objective)
        )
    table: list[dict[int, Entry]] = [{} for _ in sizes]
    ends = [sum(layers[: index + 1]) for index in range(len(layers))]
    for code, count in enumerate(sizes):
        if 1 <= count <= len(layers):
            b = ends[-count]
            a = b - layers[-count]
            for c in problem.classes:
                if code // weights[c] % (len(problem.members[c]) + 1) and problem.fits(c, a, b):
                    entry = _entry(
                        problem,
                        c,
                        problem.rate[c] * (problem.work[b] - problem.work[a]),
                        table[code - weights[c]],
                        count,
                        objective,
                    )
                    if entry is not None:
                        table[code][c] = entry
    found = [entry for code, count in enumerate(sizes) if count == len(layers) for entry in table[code].values()]
    if not found:
        return _refusal(problem, layers)
    return answer(instance, problem, Solution(min(found)[1], layers), objective)


def _entry(problem: Problem, c: int, time: int, onward: dict[int, Entry], count: int, objective: str) -> Entry | None:
    if count == 1:
        return time, (c,)
    options = []
    for d, (cost, order) in onward.items():
        own = time + problem.hop[c][d]
        options.append((max(own, cost) if objective == "bottleneck" else own + cost, (c, *order)))
    return min(options, default=None)


def _by_room(problem: Problem, layers: tuple[int, ...]) -> tuple[int, ...] | None:
    """The largest need gets the largest room: fits whenever anything does, at whatever cost."""
    needs = _needs(problem, layers)
    pool = sorted((c for c in problem.classes for _ in problem.members[c]), key=lambda c: -problem.room[c])
    order = [0] * len(layers)
    for stage, c in zip(sorted(range(len(layers)), key=lambda stage: -needs[stage]), pool, strict=False):
        if needs[stage] > problem.room[c]:
            return None
        order[stage] = c
    return tuple(order)


def _needs(problem: Problem, layers: tuple[int, ...]) -> list[int]:
    needs, a = [], 0
    for count in layers:
        needs.append(problem.need(a, a + count))
        a += count
    return needs


def _refusal(problem: Problem, layers: tuple[int, ...]) -> Placement:
    needs = _needs(problem, layers)
    rooms = sorted((problem.room[c] for c in problem.classes for _ in problem.members[c]), reverse=True)
    wanted = sorted(needs, reverse=True)
    short = next((need, room) for need, room in zip(wanted, rooms, strict=False) if need > room)
    stage = needs.index(short[0])
    return Placement(
        False,
        reason=f"stage {stage} with {layers[stage]} layers needs {size(short[0] // problem.byte)} on a device, and "
        f"the devices left for it have at most {size(short[1] // problem.byte)} free",
    )
