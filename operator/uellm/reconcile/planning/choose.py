"""Which plan is in force: the incumbent, for as long as it does, or a fresh one. Pure.

A new plan rolls pods, which costs a model load, so it has to be worth that: because the spec changed (the pods roll
anyway), because the hardware no longer holds the old plan, because it keeps targets that the old one no longer does,
or because it is better by MARGIN at what the service is planned for: GPUs in all, or with objective Latency the time of
a request, or with Throughput its rate. Both are predicted of the hardware as it is measured now, and measurements of
the same GPU differ by less. That other services have taken devices since does not break a plan whose pods run; it does
once a pod of it has found no place for a minute.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from uellm.planner import Outlook
from uellm.planner.result import Plan
from uellm.reconcile.conditions import clip
from uellm.reconcile.planning.recorded import MAX_SENTENCE

STRANDED_AFTER_S = 60
# By so much of the old plan's figure a new one has to be better; twice what measurements differ by.
MARGIN = 0.1


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
    # What the incumbent and the fresh plan are predicted to do now; None where nothing is measured.
    before: Outlook | None = None
    after: Outlook | None = None


class Choice(NamedTuple):
    """The plan in force, or why there is none; `why` says what made it replace the incumbent."""

    plan: Plan | None
    failure: Failure | None = None
    why: str = ""


def choose(
    incumbent: Plan | None,
    evaluation: Evaluation,
    *,
    spec_changed: bool,
    stranded: bool,
    objective: str = "Efficiency",
) -> Choice:
    """Keep the incumbent or take the fresh plan. `stranded`: a replica waits for a place that it does not find."""
    fresh = evaluation.plan
    if incumbent is None:
        return Choice(_with_reason(fresh, "the first plan"), evaluation.failure)
    if spec_changed:
        why = "the spec changed"
        return Choice(_replacing(incumbent, fresh, why), evaluation.failure, why if fresh else "")
    if evaluation.broken_hardware is not None:
        why = f"the former plan holds no longer: {evaluation.broken_hardware}"
        return Choice(_replacing(incumbent, fresh, why), evaluation.failure, why)
    if fresh is None:
        return Choice(incumbent)
    if stranded and evaluation.broken is not None:
        why = f"a replica found no place for the former plan: {evaluation.broken}"
    else:
        why = _worth(incumbent, fresh, evaluation, objective)
    return Choice(_replacing(incumbent, fresh, why), why=why) if why else Choice(incumbent)


def _with_reason(plan: Plan | None, reason: str) -> Plan | None:
    return None if plan is None else replace(plan, reason=clip(reason, MAX_SENTENCE))


def _replacing(incumbent: Plan, fresh: Plan | None, reason: str) -> Plan | None:
    """The fresh plan with its reason; the incumbent's own where it says nothing new."""
    if fresh is not None and replace(fresh, reason=incumbent.reason) == incumbent:
        return incumbent
    return _with_reason(fresh, reason)


def _worth(incumbent: Plan, fresh: Plan, evaluation: Evaluation, objective: str) -> str:
    """What makes the fresh plan worth a rollout; empty for nothing."""
    before, after = evaluation.before, evaluation.after
    if before is None or after is None:
        if fresh.gpus_per_replica < incumbent.gpus_per_replica:
            return f"the former plan took {_gpus(incumbent.gpus_per_replica)} a replica"
        return ""
    if before.keeps != after.keeps:
        return "the former plan keeps the targets no longer on the GPUs as they are measured now" if after.keeps else ""
    if objective == "Latency":
        better, told = _share(after.end_to_end_s, before.end_to_end_s), f"{before.end_to_end_s:.2f} s a request"
    elif objective == "Throughput":
        better, told = _share(before.requests_per_s, after.requests_per_s), f"{before.requests_per_s:.2f} requests/s"
    else:
        better, told = _share(after.gpus_in_all, before.gpus_in_all), _gpus(math.ceil(before.gpus_in_all - 1e-9))
    if better < MARGIN:
        return ""
    return f"the former plan took {told}; the new one is better by {better:.0%}"


def _share(small: float, large: float) -> float:
    """By how much of the larger the smaller is less."""
    return 1 - small / large if large else 0.0


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
