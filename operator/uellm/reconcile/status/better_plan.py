"""Whether a better plan than the one in force is known. Pure."""

from __future__ import annotations

from uellm.reconcile.conditions import Condition
from uellm.reconcile.planning.choose import Choice

TYPE = "BetterPlan"


def better_plan(choice: Choice) -> Condition:
    """The condition BetterPlan."""
    if not choice.better:
        return Condition(TYPE, "False", "NoneKnown", "no better plan is known than the one in force")
    how = "spec.placement.replan: WhenBetter takes it, and loads the model anew"
    return Condition(TYPE, "True", "NotTaken", f"{choice.better}; {how}")
