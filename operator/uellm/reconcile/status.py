"""`LLMService.status`, apart from its conditions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from uellm.planner.result import Plan
from uellm.reconcile.conditions import clip
from uellm.reconcile.names import endpoint, selector
from uellm.reconcile.observe import Observed
from uellm.reconcile.placements import MAX_PLACEMENTS, Placed

_TEXT = 256
_SENTENCE = 1024
_MAX_ALTERNATIVES = 8
_MAX_ASSUMPTIONS = 32
_MAX_NODES = 1024
_ALTERNATIVE = ("gpusPerReplica", "tensor", "pipeline", "layers", "rejected")


def timestamp(moment: datetime) -> str:
    """RFC 3339 to the second, as conditions carry it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def status_of(observed: Observed, plan: Plan | None, placed: Sequence[Placed]) -> dict[str, Any]:
    """The status with everything but conditions; what nothing is known of is left out."""
    deployed = (observed.deployment or {}).get("status") or {}
    replicas, ready = int(deployed.get("replicas") or 0), int(deployed.get("readyReplicas") or 0)
    status: dict[str, Any] = {
        "observedGeneration": observed.generation,
        "replicas": replicas,
        "readyReplicas": ready,
        "selector": ",".join(f"{name}={value}" for name, value in selector(observed.key.name).items()),
        "endpoint": endpoint(observed.key),
        "summary": _summary(plan, placed, ready, observed.replicas),
    }
    if plan is not None:
        status["plan"] = _plan(plan)
    if placed:
        status["placements"] = [each.to_dict() for each in placed[:MAX_PLACEMENTS]]
    if len(placed) > MAX_PLACEMENTS:
        status["placementsOmitted"] = len(placed) - MAX_PLACEMENTS
    return status


def _summary(plan: Plan | None, placed: Sequence[Placed], ready: int, wanted: int) -> dict[str, str]:
    summary = {"ready": f"{ready}/{wanted}"}
    if plan is None:
        return summary
    nodes = list(dict.fromkeys(each.node for each in placed)) or list(plan.nodes[: max(1, wanted)])
    layers = next((each.layers for each in placed if each.layers), plan.layers)
    summary |= {
        "gpus": f"{plan.gpus_per_replica} = tp{plan.tensor} x pp{plan.pipeline}",
        "layers": ",".join(str(count) for count in layers),
        "nodes": ",".join(nodes),
    }
    return {name: clip(text, _TEXT) for name, text in summary.items()}


def _plan(plan: Plan) -> dict[str, Any]:
    """The plan within the bounds of the schema, which keep a status small."""
    entry = plan.to_dict()
    entry["nodes"] = entry["nodes"][:_MAX_NODES]
    entry["assumptions"] = [clip(text, _SENTENCE) for text in entry["assumptions"][:_MAX_ASSUMPTIONS]]
    entry["alternatives"] = [
        {name: each[name] for name in _ALTERNATIVE if name in each} | {"rejected": clip(each["rejected"], _SENTENCE)}
        for each in entry["alternatives"][:_MAX_ALTERNATIVES]
    ]
    return entry
