"""Which plan is in force: the incumbent, for as long as it does, or a fresh one. Pure.

A new plan rolls pods, which costs a model load, so it has to be worth that: because the spec changed (the pods roll
anyway), because the hardware no longer holds the old plan, or because it takes fewer GPUs. That other services have
taken devices since does not break a plan whose pods run; it does once a pod of it has found no place for a minute.
"""

from __future__ import annotations

from typing import NamedTuple

from uellm.planner.result import Plan

STRANDED_AFTER_S = 60


class Failure(NamedTuple):
    """Why there is no plan: a CamelCase reason and a sentence."""

    reason: str
    message: str


class Evaluation(NamedTuple):
    """What the planner says: a fresh plan or why there is none, and what it thinks of the incumbent."""

    plan: Plan | None
    failure: Failure | None = None
    # Why the incumbent holds no longer on what is free now, and on the hardware as such; None where it holds.
    broken: str | None = None
    broken_hardware: str | None = None


class Choice(NamedTuple):
    """The plan in force, or why there is none; `why` says what made it replace the incumbent."""

    plan: Plan | None
    failure: Failure | None = None
    why: str = ""


def choose(incumbent: Plan | None, evaluation: Evaluation, *, spec_changed: bool, stranded: bool) -> Choice:
    """Keep the incumbent or take the fresh plan. `stranded`: a replica waits for a place that it does not find."""
    fresh = evaluation.plan
    if incumbent is None or spec_changed:
        return Choice(fresh, evaluation.failure)
    if evaluation.broken_hardware is not None:
        return Choice(fresh, evaluation.failure, f"the former plan holds no longer: {evaluation.broken_hardware}")
    if fresh is None:
        return Choice(incumbent)
    if stranded and evaluation.broken is not None:
        return Choice(fresh, why=f"a replica found no place for the former plan: {evaluation.broken}")
    if fresh.gpus_per_replica < incumbent.gpus_per_replica:
        return Choice(fresh, why=f"the former plan took {incumbent.gpus_per_replica} GPUs a replica")
    return Choice(incumbent)
