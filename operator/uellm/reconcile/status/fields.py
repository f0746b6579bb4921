"""`LLMService.status`, apart from its conditions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uellm.api.attainment_report import ClassMeasurement
from uellm.hardware import class_place
from uellm.planner.result import Plan
from uellm.reconcile.conditions import clip
from uellm.reconcile.names import endpoint, serving_selector
from uellm.reconcile.observe import Observed
from uellm.reconcile.planning.plan_status import plan_status
from uellm.reconcile.pods.attainment import percent, status_entry
from uellm.reconcile.pods.placements import MAX_PLACEMENTS, PlacementCheck
from uellm.reconcile.status.predictions import measured_entry
from uellm.reconcile.step_times.steps import ServiceSteps

_TEXT = 256


def status_of(
    observed: Observed,
    plan: Plan | None,
    placed: Sequence[PlacementCheck],
    measured: Sequence[ClassMeasurement] = (),
    steps: ServiceSteps | None = None,
    *,
    revision: str = "",
) -> dict[str, Any]:
    """The status but for its conditions; unknown fields are left out."""
    deployed = (observed.deployment or {}).get("status") or {}
    replicas, ready = int(deployed.get("replicas") or 0), int(deployed.get("readyReplicas") or 0)
    status: dict[str, Any] = {
        "observedGeneration": observed.generation,
        "replicas": replicas,
        "readyReplicas": ready,
        "selector": ",".join(f"{name}={value}" for name, value in _selector(observed).items()),
        "endpoint": endpoint(observed.key),
        "summary": _summary(plan, placed, ready, observed.replicas),
    }
    if plan is not None:
        status["plan"] = plan_status(plan)
    if observed.scaling is not None:
        status["autoscaling"] = observed.scaling.to_dict()
    if revision:
        status["revision"] = revision
    if measured:
        status["slo"] = [status_entry(each) for each in measured]
    if steps is not None:
        status["measured"] = measured_entry(steps)
    if requests := sum(each.requests for each in measured):
        status["summary"]["slo"] = percent(sum(each.met for each in measured), requests)
    if placed:
        status["placements"] = [each.to_dict() for each in placed[:MAX_PLACEMENTS]]
    if len(placed) > MAX_PLACEMENTS:
        status["placementsOmitted"] = len(placed) - MAX_PLACEMENTS
    return status


def _selector(observed: Observed) -> dict[str, str]:
    """Of one pod for each replica."""
    nodes = 1 if observed.revision is None else observed.revision.nodes
    return serving_selector(observed.key.name, nodes)


def _summary(plan: Plan | None, placed: Sequence[PlacementCheck], ready: int, wanted: int) -> dict[str, str]:
    summary = {"ready": f"{ready}/{wanted}"}
    if plan is None:
        return summary
    planned = plan.nodes[: max(1, wanted) * plan.nodes_per_replica]
    nodes = list(dict.fromkeys(each.node for each in placed)) or list(planned)
    nodes = nodes or [f"({class_place(name)})" for name in plan.node_classes[:1]]
    layers = next((each.of_replica or each.layers for each in placed if each.layers), plan.layers)
    summary |= {
        "gpus": f"{plan.gpus_per_replica} = tp{plan.tensor} x pp{plan.pipeline}",
        "layers": ",".join(str(count) for count in layers),
        "nodes": ",".join(nodes),
    }
    return {name: clip(text, _TEXT) for name, text in summary.items()}
