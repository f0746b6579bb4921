"""The planner's calls for one service: a fresh plan, and how the plan in force does now."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from uellm.errors import BadInput, PlanError
from uellm.planner import Outlook, joining, outlook, plan, still_holds
from uellm.planner.joining import as_joined
from uellm.planner.refusals.sentences import sentence
from uellm.planner.request import NodeOffer, PlanRequest
from uellm.planner.result import Plan
from uellm.planner.revised import revised
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.plan_status import recorded


class Evaluation(NamedTuple):
    """The planner's answers: a fresh plan or why there is none, and how the incumbent does."""

    plan: Plan | None
    """The fresh plan, in the form in which the status keeps it."""
    failure: Obstacle | None = None
    """Why there is no fresh plan."""
    broken: str | None = None
    """Why the incumbent does not fit on what is free now; None where it fits."""
    broken_hardware: str | None = None
    """Why the incumbent would not fit even if every GPU were free; None where it would, or was not checked."""
    before: Outlook | None = None
    """What the incumbent is predicted to do now; None where nothing is measured."""
    after: Outlook | None = None
    """What the fresh plan is predicted to do; None where nothing is measured."""
    revised: Plan | None = None
    """The incumbent with a new prediction; None where the prediction has not changed."""
    joined: Plan | None = None
    """The incumbent, which was planned for a node that had not joined, on a node that is there and holds it."""


def evaluate(
    request: PlanRequest,
    incumbent: Plan | None,
    hardware: tuple[NodeOffer, ...] | None,
    *,
    revise: bool = False,
) -> Evaluation:
    """Plan anew, and check the incumbent against what is offered and against the bare `hardware`; None: not checked.

    The incumbent is checked for one replica: whether more of them find a place is the scheduler's decision, pod by pod.
    `revise`: predict the incumbent anew, because the spec has changed.
    Errors are returned as values, because an exception with two arguments cannot be pickled.
    """
    if incumbent is not None and incumbent.node_classes:
        return _evaluate_waiting(request, incumbent)
    broken = broken_hardware = None
    if incumbent is not None:
        alone = dataclasses.replace(request, replicas=1)
        broken = _broken_as_it_runs(incumbent, alone)
        if broken and hardware is not None:
            broken_hardware = _broken_as_it_runs(incumbent, dataclasses.replace(alone, nodes=hardware))
    failed = Evaluation(None, None, broken, broken_hardware)
    try:
        fresh = plan(request)
        # Both by today's measurements: the incumbent's own prediction was made with older ones.
        before, after, running = None, None, request
        if incumbent is not None:
            (before, running), after = _now(incumbent, request), outlook(*as_joined(fresh, request))
    except PlanError as error:
        return failed._replace(failure=Obstacle(error.reason, str(error)))
    except BadInput as error:
        return failed._replace(failure=Obstacle("InvalidOverride", str(error)))
    try:
        kept = None
        if incumbent is not None and (revise or _judged_otherwise(incumbent, before)):
            kept = recorded(revised(incumbent, running, fresh))
        return Evaluation(recorded(fresh), None, broken, broken_hardware, before, after, kept)
    except ValueError as error:
        message = f"the plan does not fit into status.plan ({error}); please report this with the LLMService"
        return failed._replace(failure=Obstacle("PlannerFailed", message))


def _evaluate_waiting(request: PlanRequest, incumbent: Plan) -> Evaluation:
    """The same for a plan that waits for a node to join: it is no worse for what is there now."""
    broken = joining.broken(incumbent, request) or None
    evaluation = Evaluation(None, None, broken, broken)
    try:
        on_node = joining.joined(incumbent, request)
        if on_node is not None:
            evaluation = evaluation._replace(joined=recorded(revised(on_node, request, None)))
        return evaluation._replace(plan=recorded(plan(request)))
    except PlanError as error:
        return evaluation._replace(failure=Obstacle(error.reason, str(error)))
    except BadInput as error:
        return evaluation._replace(failure=Obstacle("InvalidOverride", str(error)))
    except ValueError as error:
        message = f"the plan does not fit into status.plan ({error}); please report this with the LLMService"
        return evaluation._replace(failure=Obstacle("PlannerFailed", message))


def _judged_otherwise(incumbent: Plan, now: Outlook | None) -> bool:
    """True where the plan's verdict on the targets no longer is what today's measurements give."""
    return now is not None and incumbent.slo is not None and incumbent.slo.feasible != now.keeps


def _broken_as_it_runs(incumbent: Plan, request: PlanRequest) -> str | None:
    broken = _broken(incumbent, request)
    return broken if broken and _broken(incumbent, _as_it_runs(incumbent, request)) else None


def _now(incumbent: Plan, request: PlanRequest) -> tuple[Outlook | None, PlanRequest]:
    """What the incumbent is predicted to do, and the request that this is judged by."""
    for each in (request, _as_it_runs(incumbent, request)):
        if (now := outlook(incumbent, each)) is not None:
            return now, each
    return None, request


def _as_it_runs(incumbent: Plan, request: PlanRequest) -> PlanRequest:
    """The request on nodes with GPUs like those of the plan's own: pods that run there have their kernels."""
    own = {
        device.product for offer in request.nodes if offer.node.name in incumbent.nodes for device in offer.node.devices
    }
    nodes = tuple(offer for offer in request.nodes if any(device.product in own for device in offer.node.devices))
    return dataclasses.replace(request, nodes=nodes, engine=dataclasses.replace(request.engine, own_image=True))


def _broken(incumbent: Plan, request: PlanRequest) -> str | None:
    refusal = still_holds(incumbent, request)
    return None if refusal is None else sentence(refusal)
