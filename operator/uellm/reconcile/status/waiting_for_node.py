"""A service whose plan is for a node that has not joined the cluster yet. Pure."""

from __future__ import annotations

from uellm.hardware import class_place
from uellm.planner.result import Plan
from uellm.reconcile.node_pools import missing_labels
from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.engine_readiness import EngineReadiness, living
from uellm.text import and_more

_CLASSES_NAMED = 3


def waits_for_node(plan: Plan | None, observed: Observed) -> bool:
    """Whether no pod has a node, and the plan is for one that has not joined."""
    if plan is None or not plan.node_classes:
        return False
    return not any(pod["spec"].get("nodeName") for pod in living(observed.pods))


def waiting_for_node(observed: Observed, plan: Plan | None) -> EngineReadiness | None:
    """What it waits for; None where it waits for no node, or a pod has one."""
    if plan is None or not waits_for_node(plan, observed):
        return None
    first, *others = plan.node_classes
    carries = _labels(observed, first)
    more = (
        f"; one of {and_more([class_place(name) for name in others], _CLASSES_NAMED)} would do, too" if others else ""
    )
    pod = observed.deployment["spec"]["template"]["spec"] if observed.deployment else {}
    missing = ", ".join(missing_labels(observed.pool_labels, pod))
    pools = f"; no NodePool carries {missing}: put them into its spec.template.metadata.labels" if missing else ""
    message = (
        f"no node that is there can hold a replica: it waits for a node of {class_place(first)} to join"
        f"{f', with the labels {carries}' if carries else ''}{more}{pools}"
    )
    return EngineReadiness(False, "WaitingForNode", message)


def _labels(observed: Observed, name: str) -> str:
    """What a node of the class carries, by which its pods and an autoscaler find it."""
    found = next((each for each in observed.node_classes if each.name == name), None)
    return ", ".join(f"{key}={value}" for key, value in (found.labels if found else {}).items())
