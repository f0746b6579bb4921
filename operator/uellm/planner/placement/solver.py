"""The layer-placement solver: `solve(instance, policy, objective)`; the contract is that of `uellm place`.

    policy      HELR  a1 and a2 of the instance
                HE    the fewest devices, then the least latency (a1 = 0, a2 = 1)
                LR    a second of latency costs ten times as much as a device (a1 = 10, a2 = 1)
                BGS   baseline: greedy best fit
                Even  baseline: vLLM's own split over the fewest devices on which it fits
    objective   latency     the least cost
                bottleneck  the least time of the slowest stage; ties by the cost

The solver is exact for any sixteen devices, and for more if many of them are interchangeable. Beyond that it returns
the best placement found with a proven lower bound. The search stops after a number of states, never after a time: the
same instance always has the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from uellm.errors import BadInput
from uellm.placement_policies import FIXED_WEIGHTS, PLACEMENT_POLICIES
from uellm.planner.placement import baselines, heuristic, infeasible
from uellm.planner.placement.instance import Instance, PlaceDevice, exact
from uellm.planner.placement.problem import Problem, canonical
from uellm.planner.placement.solution import Solution
from uellm.planner.refusals.placement import BaselineFails, PlacementRefusal, SearchCutShort
from uellm.planner.refusals.sentences import sentence

__all__ = ["OBJECTIVES", "Instance", "PlaceDevice", "Placement", "solve"]

OBJECTIVES = ("latency", "bottleneck")
# Subsets of devices have 64-bit codes. With more subsets than this, the heuristic is used.
MOST_CODED_SETS = 1 << 62
# Relative difference between sums of the same floats in another order.
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Placement:
    """A placement on k devices, or the reason that there is none."""

    feasible: bool
    cost: float | None = None
    """The cost of the contract; the slowest stage's time for objective bottleneck."""
    order: tuple[str, ...] = ()
    """[k]: device ids in pipeline order."""
    layers: tuple[int, ...] = ()
    """[k]: number of layers on each device."""
    optimal: bool = False
    """Whether the placement is proven to be the best."""
    lower_bound: float | None = None
    """No placement costs less."""
    refusal: PlacementRefusal | None = None
    """Set if `feasible` is false."""

    @property
    def reason(self) -> str:
        """The refusal as a sentence; empty if there is a placement."""
        return "" if self.refusal is None else sentence(self.refusal)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `uellm place`."""
        if not self.feasible:
            return {"feasible": False, "reason": self.reason}
        return {
            "feasible": True,
            "cost": self.cost,
            "order": list(self.order),
            "layers": list(self.layers),
            "optimal": self.optimal,
            "lowerBound": self.lower_bound,
        }


def solve(
    instance: Instance, policy: str = "HELR", objective: str = "latency", *, stages: int | None = None
) -> Placement:
    """The best placement under a policy; `stages` pins the number of devices used. Raises BadInput for a bad name."""
    if policy not in PLACEMENT_POLICIES:
        raise BadInput("policy", f"{policy!r} is not one of {', '.join(PLACEMENT_POLICIES)}")
    if objective not in OBJECTIVES:
        raise BadInput("objective", f"{objective!r} is not one of {', '.join(OBJECTIVES)}")
    chosen = _PolicySearch(instance, policy, objective, stages)
    return chosen.baseline() if policy in ("BGS", "Even") else chosen.optimum()


class _PolicySearch:
    """One call of `solve`."""

    def __init__(self, instance: Instance, policy: str, objective: str, stages: int | None) -> None:
        self.instance, self.policy, self.objective, self.stages = instance, policy, objective, stages
        self.problem = canonical(instance)
        most = min(self.problem.devices, self.problem.layers)
        self.sizes = range(1, most + 1) if stages is None else range(stages, min(stages, most) + 1)
        ordered = sorted(range(len(instance.devices)), key=lambda index: instance.devices[index].id)
        self.rank = [0] * len(ordered)
        for position, index in enumerate(ordered):
            self.rank[index] = position

    def optimum(self) -> Placement:
        """The best placement under HELR, HE or LR."""
        if not self.sizes:
            return self._infeasible()
        if self._subset_count() > MOST_CODED_SETS:
            return self._heuristic()
        # With numpy, which the operator's own process needs not: it only hands questions on.
        from uellm.planner.placement.arrays import search

        method = search.min_bottleneck if self.objective == "bottleneck" else search.min_cost
        result = method(self.problem, self._device_cost(), self.sizes, self.rank)
        if result is None:
            return self._infeasible()
        if result.solution is None:
            return self._heuristic()
        return self._placement(result.solution, None if result.bound is None else self._cost_of(result.bound))

    def baseline(self) -> Placement:
        """The placement of BGS or Even, with the optimum (or a relaxed bound) as its lower bound."""
        if self.policy == "BGS":
            solution = baselines.greedy_best_fit(self.problem, self.rank, self.stages)
        else:
            solution = baselines.even(self.problem, self.rank, self._latency_units, self.stages)
        if solution is None:
            return self._baseline_failed()
        best = _PolicySearch(self.instance, "HELR", self.objective, self.stages).optimum()
        return self._placement(solution, best.lower_bound or 0.0)

    def _subset_count(self) -> int:
        return math.prod(len(members) + 1 for members in self.problem.members)

    def _device_cost(self) -> int | None:
        """The cost of a device in the problem's units of latency; None: more than any latency."""
        a1, a2 = _weights(self.policy, self.instance)
        return None if a1 == 0 else int(exact(a2) / exact(a1) / self.problem.unit)

    def _cost_of(self, bound: int) -> float:
        """The contract's cost of a lower bound in the problem's units."""
        a1, a2 = _weights(self.policy, self.instance)
        if self.objective == "bottleneck":
            return float(bound * self.problem.unit)
        return float(exact(a1) * bound * self.problem.unit) if a1 else float(a2) * min(self.sizes)

    def _heuristic(self) -> Placement:
        bottleneck = self.objective == "bottleneck"
        best: tuple[tuple[int, tuple[Fraction, int, int], tuple[int, ...]], Solution] | None = None
        for size in self.sizes:
            least = self._cost_key(heuristic.latency_bound(self.problem, size), size)
            if best is not None and not bottleneck and least >= best[0][1]:
                continue  # no placement on this many devices can be better
            for solution, bound in heuristic.candidates(self.problem, size, bottleneck=bottleneck):
                key = (bound, self._cost_key(self._latency_units(solution), size), solution.classes)
                if best is None or key < best[0]:
                    best = (key, solution)
        return (
            Placement(False, refusal=self._cut_short())
            if best is None
            else self._placement(best[1], self._relaxed_bound())
        )

    def _cost_key(self, cost: int, size: int) -> tuple[Fraction, int, int]:
        """Key to compare placements on `size` devices: the contract's cost, then fewer devices, then less latency."""
        a1, a2 = _weights(self.policy, self.instance)
        return exact(a1) * cost * self.problem.unit + exact(a2) * size, size, cost

    def _latency_units(self, solution: Solution) -> int:
        """The latency of a placement in the problem's units."""
        problem, a, total = self.problem, 0, 0
        for c, count in zip(solution.classes, solution.layers, strict=True):
            total += problem.rate[c] * (problem.work[a + count] - problem.work[a])
            a += count
        return total + sum(problem.hop[c][d] for c, d in pairwise(solution.classes))

    def _relaxed_bound(self) -> float:
        """A lower bound that needs no search."""
        if self.objective == "bottleneck":
            return float(heuristic.bottleneck_bound(self.problem) * self.problem.unit)
        a1, a2 = _weights(self.policy, self.instance)
        return min(
            float(exact(a1) * heuristic.latency_bound(self.problem, size) * self.problem.unit + exact(a2) * size)
            for size in self.sizes
        )

    def _placement(self, solution: Solution, bound: float | None) -> Placement:
        return to_placement(self.instance, self.problem, solution, self.objective, policy=self.policy, bound=bound)

    def _infeasible(self) -> Placement:
        return Placement(False, refusal=infeasible.refusal_of(self.instance, self.problem, self.stages))

    def _cut_short(self) -> PlacementRefusal:
        return SearchCutShort(
            len(self.problem.members), infeasible.refusal_of(self.instance, self.problem, self.stages)
        )

    def _baseline_failed(self) -> Placement:
        best = _PolicySearch(self.instance, "HELR", self.objective, self.stages).optimum()
        if not best.feasible:
            return best
        return Placement(False, refusal=BaselineFails(self.policy, best.order, best.layers))


def to_placement(
    instance: Instance,
    problem: Problem,
    solution: Solution,
    objective: str,
    *,
    policy: str = "HELR",
    bound: float | None = None,
) -> Placement:
    """The solution by the instance's device ids. `bound`: a lower bound on the cost; None: the solution is optimal."""
    chosen = solution.devices(problem)
    cost = _cost(instance, policy, objective, chosen, solution.layers)
    return Placement(
        feasible=True,
        cost=cost,
        order=tuple(instance.devices[index].id for index in chosen),
        layers=solution.layers,
        optimal=bound is None or cost <= bound * (1 + TOLERANCE),
        lower_bound=cost if bound is None else min(bound, cost),
    )


def _weights(policy: str, instance: Instance) -> tuple[float, float]:
    """a1 and a2 of the cost under a policy."""
    return FIXED_WEIGHTS.get(policy, (instance.a1, instance.a2))


def _cost(instance: Instance, policy: str, objective: str, chosen: Iterable[int], layers: Iterable[int]) -> float:
    """The contract's cost in floats, computed from the placement and not from the search."""
    stages = list(zip(chosen, layers, strict=True))
    times, a = [], 0
    for device, count in stages:
        work = math.fsum(instance.layer_bytes[a : a + count])
        times.append(instance.work_per_byte * work / instance.devices[device].performance)
        a += count
    hops = [instance.latency_s[i][j] for (i, _), (j, _) in pairwise(stages)]
    if objective == "bottleneck":
        return max(time + hop for time, hop in zip(times, [*hops, 0.0], strict=True))
    a1, a2 = _weights(policy, instance)
    return float(a1 * math.fsum([*times, *hops]) + a2 * len(stages))
