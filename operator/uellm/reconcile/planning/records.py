"""What is remembered of a service's planning between passes."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import NamedTuple

from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.planning.choose import Choice
from uellm.reconcile.planning.ledger import hardware_changed
from uellm.reconcile.planning.unchanged import Inputs
from uellm.reconcile.rendered_plan import RenderedPlan


class Planned(NamedTuple):
    """The choice, and the chosen plan for its pods; None where there is no plan, or the pods keep their revision."""

    choice: Choice
    rendered: RenderedPlan | None


class Standing(NamedTuple):
    """The last choice for a service, and what it was made for."""

    spec_digest: str
    request: PlanRequest
    stranded: bool
    may_improve: bool
    placed: bool
    """Every replica had a node, so nobody asked whether the hardware still holds the plan."""
    choice: Choice
    since: datetime


class LastPass(NamedTuple):
    """The result of the last pass, and its inputs."""

    inputs: Inputs
    planned: Planned
    since: datetime


class Rendering(NamedTuple):
    """A rendered plan, and what it was rendered from."""

    plan: Plan
    request: PlanRequest
    rendered: RenderedPlan

    def is_of(self, plan: Plan, request: PlanRequest) -> bool:
        """True where rendering these would give the same: it does not depend on which GPUs are free."""
        return self.plan == plan and same_but_for_offers(self.request, request)


def same_but_for_offers(before: PlanRequest, after: PlanRequest) -> bool:
    """True where the requests differ at most in which GPUs of the nodes are free, promised, or behind a cordon."""
    if hardware_changed(before.nodes, after.nodes):
        return False
    return dataclasses.replace(before, nodes=(), left_out=()) == dataclasses.replace(after, nodes=(), left_out=())
