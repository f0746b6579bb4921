"""Which plan to use: the incumbent, or a fresh one. Pure.

A new plan restarts pods, which costs a model load. So the incumbent is kept unless

    the spec changed           in a field that pods are started with: they are replaced in any case,
    the hardware changed       and no longer holds the incumbent,
    a node has joined          for which it was planned, and holds another plan only,
    a replica is stranded      it has found no place for a minute, because other services took the devices,
    the fresh plan is better   and the service says `placement.replan: WhenBetter`, or no pod runs. Better: it meets
                               targets that the incumbent misses, or beats it by MARGIN at the objective: GPUs for the
                               whole load, with objective Latency the time of a request, with Throughput the request
                               rate. Both are predicted from today's measurements.

A better plan that is not taken is reported.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from uellm.hardware import class_place
from uellm.planner.result import Plan
from uellm.reconcile.conditions import clip
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.evaluate import Evaluation
from uellm.reconcile.planning.plan_status import MAX_SENTENCE
from uellm.text import counted

# A new plan must be better by this share. Measurements of the same GPU differ by about half as much.
MARGIN = 0.1


class Choice(NamedTuple):
    """The plan to use, or why there is none."""

    plan: Plan | None
    failure: Obstacle | None = None
    why: str = ""
    """Why the plan replaced the incumbent; empty where it did not."""
    better: str = ""
    """A better plan that was not taken, and why it is better; empty where none is known."""


def choose(
    incumbent: Plan | None,
    evaluation: Evaluation,
    *,
    spec_changed: bool,
    stranded: bool,
    may_improve: bool = False,
    objective: str = "Efficiency",
) -> Choice:
    """Keep the incumbent or take the fresh plan.

    `stranded`: a replica finds no place; `may_improve`: a better plan may take the place of one that works.
    """
    fresh = evaluation.plan
    if incumbent is None:
        return Choice(_with_reason(fresh, "the first plan"), evaluation.failure)
    if spec_changed:
        why = "the spec changed"
        return Choice(_replacing(incumbent, fresh, why), evaluation.failure, why if fresh else "")
    if incumbent.node_classes:
        return _while_it_waits(incumbent, evaluation)
    if evaluation.broken_hardware is not None:
        why = f"the former plan no longer fits: {evaluation.broken_hardware}"
        return Choice(_replacing(incumbent, fresh, why), evaluation.failure, why)
    if fresh is None:
        return Choice(evaluation.revised or incumbent)
    if stranded and evaluation.broken is not None:
        why = f"a replica found no place for the former plan: {evaluation.broken}"
    else:
        why = _worth(incumbent, fresh, evaluation, objective)
        if why and not may_improve:
            return Choice(evaluation.revised or incumbent, better=f"{described(fresh)}: {why}")
    return Choice(_replacing(incumbent, fresh, why), why=why) if why else Choice(evaluation.revised or incumbent)


def _while_it_waits(incumbent: Plan, evaluation: Evaluation) -> Choice:
    """A plan for a node that had not joined: it is kept while such a node may come, and on a node that holds it."""
    if evaluation.joined is not None:
        return Choice(evaluation.joined)
    fresh, first = evaluation.plan, class_place(incumbent.node_classes[0])
    if evaluation.broken is not None:
        why = f"the former plan was for a node that has not joined: {evaluation.broken}"
    elif fresh is None or fresh.node_classes:
        return Choice(incumbent)
    else:
        why = f"the former plan was for a node of {first} that has not joined, and one that is there holds this plan"
    return Choice(_replacing(incumbent, fresh, why), evaluation.failure, why)


def _with_reason(plan: Plan | None, reason: str) -> Plan | None:
    return None if plan is None else replace(plan, reason=clip(reason, MAX_SENTENCE))


def _replacing(incumbent: Plan, fresh: Plan | None, reason: str) -> Plan | None:
    """The fresh plan with its reason; the incumbent itself where both are the same but for the reason."""
    if fresh is not None and replace(fresh, reason=incumbent.reason) == incumbent:
        return incumbent
    return _with_reason(fresh, reason)


def _worth(incumbent: Plan, fresh: Plan, evaluation: Evaluation, objective: str) -> str:
    """Why the fresh plan is worth a rollout; empty where it is not."""
    before, after = evaluation.before, evaluation.after
    if fresh.node_classes:
        return ""  # a plan on nodes that are there is not given up for one that waits for a node
    if before is None or after is None:
        if fresh.gpus_per_replica < incumbent.gpus_per_replica:
            return f"the former plan took {counted(incumbent.gpus_per_replica, 'GPU')} a replica"
        return ""
    if before.keeps != after.keeps:
        return (
            "the former plan misses targets on the GPUs as they are measured now, and the new one meets them"
            if after.keeps
            else ""
        )
    if objective == "Latency":
        better, former = _share(after.end_to_end_s, before.end_to_end_s), f"{before.end_to_end_s:.2f} s a request"
    elif objective == "Throughput":
        better, former = _share(before.requests_per_s, after.requests_per_s), f"{before.requests_per_s:.2f} requests/s"
    else:
        better, former = (
            _share(after.gpus_in_all, before.gpus_in_all),
            counted(math.ceil(before.gpus_in_all - 1e-9), "GPU"),
        )
    if better < MARGIN:
        return ""
    return f"the former plan took {former}; the new one is {better:.0%} better"


def described(plan: Plan) -> str:
    """A plan's shape and layers, for a condition."""
    gpus, layers = counted(plan.gpus_per_replica, "GPU"), ",".join(str(count) for count in plan.layers)
    return f"{gpus} a replica (tensor {plan.tensor} × pipeline {plan.pipeline}), layers {layers}"


def _share(small: float, large: float) -> float:
    """The difference, as a share of the larger."""
    return 1 - small / large if large else 0.0
