"""What is remembered of a service's planning between passes."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import NamedTuple

from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.observe import Observed
from uellm.reconcile.planning.choose import Choice
from uellm.reconcile.planning.improve import may_improve
from uellm.reconcile.planning.ledger import hardware_changed, offers_more
from uellm.reconcile.planning.stranded import all_placed, is_stranded
from uellm.reconcile.planning.unchanged import Inputs
from uellm.reconcile.rendered_plan import RenderedPlan

IMPROVE_EVERY_S = 300
"""How often a service with a plan is planned again because GPUs became free."""


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

    def still_holds(self, observed: Observed, request: PlanRequest, now: datetime) -> bool:
        """True where nothing has happened since that could change the choice. `request`: the one to be made now."""
        chosen, stranded = self.choice.plan, is_stranded(observed, now)
        waits = chosen is None or bool(chosen.node_classes)
        if self.spec_digest != observed.spec_digest:
            return False
        if not same_but_for_offers(self.request, request, classes=waits):
            return False
        if chosen is not None and observed.incumbent not in (None, chosen):
            return False
        if waits and self.request.left_out != request.left_out:
            return False
        if self.may_be_improved_now(observed, now) or (self.placed and not all_placed(observed)):
            return False
        if stranded and (not self.stranded or request.nodes != self.request.nodes):
            return False
        # A service without a plan, or without a node for it, is planned as soon as something becomes free. For another
        # one that could only mean a better plan, and GPUs come and go all the time.
        patience_s = 0 if waits else IMPROVE_EVERY_S
        recent = (now - self.since).total_seconds() < patience_s
        return recent or not offers_more(self.request.nodes, request.nodes)

    def may_be_improved_now(self, observed: Observed, now: datetime) -> bool:
        """True where a better plan is known that may be taken now and might not then."""
        return bool(self.choice.better) and not self.may_improve and may_improve(observed, now)


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
        return self.plan == plan and same_but_for_offers(self.request, request, classes=bool(plan.node_classes))


def same_but_for_offers(before: PlanRequest, after: PlanRequest, *, classes: bool = True) -> bool:
    """True where the requests differ at most in which GPUs of the nodes are free, promised, or behind a cordon.

    Measured step times that have come since call for no plan either: they are used by the next one.

    `classes`: classes of nodes that may join matter, too.
    """
    if hardware_changed(before.nodes, after.nodes):
        return False
    return _bare(before, classes=classes) == _bare(after, classes=classes)


def _bare(request: PlanRequest, *, classes: bool) -> PlanRequest:
    return dataclasses.replace(
        request, nodes=(), left_out=(), would_join=request.would_join if classes else (), corrections=()
    )
