"""`status.plan`: the plan within the bounds of the API's schema, without floats.

A plan is reduced to this form before it is used. So the children are the same to the byte whether they are built before
the status is written or after it is read back.
"""

from __future__ import annotations

from typing import Any

from uellm.api import PlanStatus
from uellm.planner.result import Plan
from uellm.reconcile.conditions import clip

MAX_SENTENCE = 1024
MAX_ALTERNATIVES = 8
MAX_ASSUMPTIONS = 32
MAX_NODES = 1024
MAX_RECOMMENDED = 1_000_000


def recorded(plan: Plan) -> Plan:
    """The plan as it will be read back from the status. Raises ValueError where it does not fit into the schema."""
    return Plan.from_dict(plan_status(plan))


def plan_status(plan: Plan) -> dict[str, Any]:
    """`status.plan`."""
    entry = plan.to_dict()
    entry["nodes"] = entry["nodes"][:MAX_NODES]
    entry["assumptions"] = [clip(text, MAX_SENTENCE) for text in entry["assumptions"][:MAX_ASSUMPTIONS]]
    entry["alternatives"] = [
        {**each, "rejected": clip(each["rejected"], MAX_SENTENCE)} for each in entry["alternatives"][:MAX_ALTERNATIVES]
    ]
    entry |= {name: clip(entry[name], MAX_SENTENCE) for name in ("binding", "reason") if name in entry}
    if "slo" in entry:
        entry["slo"] = {name: _clipped(value) for name, value in entry["slo"].items()}
    if entry.get("recommendedReplicas") is not None:
        entry["recommendedReplicas"] = min(entry["recommendedReplicas"], MAX_RECOMMENDED)
    return PlanStatus.model_validate(entry).to_dict()


def _clipped(value: Any) -> Any:
    return clip(value, MAX_SENTENCE) if isinstance(value, str) else value
