"""The whole work of planning one service, as it runs in the worker process: values in, values out. Pure.

evaluate   ask the planner
choose     keep the plan in force or take the fresh one
render     write the documents that the pods read
"""

from __future__ import annotations

from dataclasses import dataclass

from uellm.planner.request import NodeOffer, PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.planning.choose import Choice, choose
from uellm.reconcile.planning.evaluate import Evaluation, evaluate
from uellm.reconcile.planning.render import render
from uellm.reconcile.rendered_plan import RenderedPlan


@dataclass(frozen=True, slots=True)
class PlanningQuestion:
    """What the worker needs to know about a service."""

    request: PlanRequest
    incumbent: Plan | None = None
    """The plan in force."""
    hardware: tuple[NodeOffer, ...] | None = None
    """The nodes as if every GPU were free and every node open; None where it does not matter whether the incumbent
    would still fit: there is none, or all its replicas have their places."""
    spec_changed: bool = False
    """The pods run another spec, so they are replaced in any case."""
    stranded: bool = False
    """A replica finds no place."""
    may_improve: bool = False
    """A better plan may take the place of one that works."""
    revise: bool = False
    """The spec is another than the one that the plan in force was predicted for."""
    unprofiled: bool = False
    """A pod is on a node that has no profile yet."""

    def choice(self, evaluation: Evaluation) -> Choice:
        """The plan to use, given the planner's answer."""
        waits = self.incumbent is not None and self.incumbent.node_classes and not self.spec_changed
        if waits and self.unprofiled and evaluation.broken is None and evaluation.joined is None:
            return Choice(self.incumbent)  # the node has joined, and its profile will show whether it holds the plan
        outgrown = self.incumbent is not None and self.incumbent.adapters != self.request.adapters
        return choose(
            self.incumbent,
            evaluation,
            spec_changed=self.spec_changed or outgrown,
            stranded=self.stranded,
            may_improve=self.may_improve,
            objective=self.request.objective,
        )


@dataclass(frozen=True, slots=True)
class PlanningAnswer:
    """The plan to use, or why there is none."""

    choice: Choice
    rendered: RenderedPlan | None = None
    """The chosen plan for its pods; None where no plan was chosen, or where it is yet to be rendered."""
    found: bool = True
    """A fresh plan was found, whichever was chosen."""


def answer(question: PlanningQuestion) -> PlanningAnswer:
    """Plan, choose and render."""
    evaluation = evaluate(question.request, question.incumbent, question.hardware, revise=question.revise)
    choice = question.choice(evaluation)
    rendered = None if choice.plan is None else render(choice.plan, question.request)
    return PlanningAnswer(choice, rendered, found=evaluation.plan is not None)
