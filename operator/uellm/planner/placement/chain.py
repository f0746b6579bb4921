"""The best split of the layers where the order of the devices is given: stages on consecutive nodes of a group."""

from __future__ import annotations

import numpy as np

from uellm.planner.placement.arrays.grid import INFINITE, Grid, grid
from uellm.planner.placement.arrays.traceback import best_split_on_grid
from uellm.planner.placement.infeasible import refusal_of
from uellm.planner.placement.instance import Instance
from uellm.planner.placement.problem import Problem, canonical
from uellm.planner.placement.solution import Solution
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
    table = grid(problem, 0)
    slowest = _least_bottleneck(table, order)
    if slowest == INFINITE:
        return Placement(False, refusal=refusal_of(instance, problem, len(order)))
    reach, fits_last = table.reach[:, None], table.fits_last
    if objective == "bottleneck":
        reach, fits_last = table.within(slowest), table.fits_last_within(slowest)
    return to_placement(instance, problem, best_split_on_grid(table, order, reach, fits_last), objective)


def _least_bottleneck(table: Grid, order: tuple[int, ...]) -> float:
    """The least time of the slowest stage, with its hop, in steps of the grid; infinite if no split fits.

    Dynamic programming from the last stage to the first, in O(k L^2): [L + 1] by the first layer that is left.
    """
    positions = np.arange(table.layers + 1)
    last = table.time[order[-1]]
    slowest = np.where(table.fits_last[order[-1]], last[-1] - last, INFINITE)
    for c, d in zip(order[-2::-1], order[:0:-1], strict=True):
        time, limit = table.time[c], table.reach[c]
        allowed = (positions[None, :] > positions[:, None]) & (positions[None, :] <= limit[:, None])
        own = time[None, :] - time[:, None] + table.hop[c, d]
        slowest = np.where(allowed, np.maximum(own, slowest[None, :]), INFINITE).min(axis=1)
    return float(slowest[0])


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
