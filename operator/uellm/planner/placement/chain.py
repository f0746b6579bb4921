"""The best split of the layers where the order of the devices is given: stages on consecutive nodes of a group."""

from __future__ import annotations

from uellm.planner.placement.heuristic import order_bottleneck
from uellm.planner.placement.infeasible import refusal_of
from uellm.planner.placement.instance import Instance
from uellm.planner.placement.problem import Problem, canonical
from uellm.planner.placement.solution import Solution, best_split
from uellm.planner.placement.solver import Placement, to_placement
from uellm.planner.refusals.placement import EmptyStage, StageTooLarge, TooFewDevices
from uellm.planner.spans import spans


def place_chain(instance: Instance, objective: str, layers: tuple[int, ...] | None = None) -> Placement:
    """The best split over all devices of an instance in their order, or `layers` [n] on them; a refusal if none fits.

    The devices' ids are in that order. The result is optimal.
    """
    problem = canonical(instance)
    class_of = {index: c for c in problem.classes for index in problem.members[c]}
    order = tuple(class_of[index] for index in range(problem.devices))
    if layers is not None:
        refusal = _refusal(problem, order, layers)
        solution = Solution(order, layers)
        return Placement(False, refusal=refusal) if refusal else to_placement(instance, problem, solution, objective)
    try:
        bound = order_bottleneck(problem, order) if objective == "bottleneck" else None
        return to_placement(instance, problem, best_split(problem, order, bound), objective)
    except ValueError:
        return Placement(False, refusal=refusal_of(instance, problem, len(order)))


def _refusal(
    problem: Problem, order: tuple[int, ...], layers: tuple[int, ...]
) -> EmptyStage | TooFewDevices | StageTooLarge | None:
    """Why a given split does not fit in this order; None if it does."""
    if min(layers) < 1:
        return EmptyStage(len(layers), problem.layers)
    if len(layers) != len(order):
        return TooFewDevices(len(layers), len(order))
    for stage, (c, (a, b)) in enumerate(zip(order, spans(layers), strict=True)):
        if not problem.fits(c, a, b):
            need_bytes, have_bytes = (count // problem.byte for count in (problem.need(a, b), problem.room[c]))
            return StageTooLarge(stage, layers[stage], need_bytes, have_bytes)
    return None
