"""Single facts of a pod's status. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.reconcile.kueue import TERMINATION_TARGET


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether the pod serves, by its own condition Ready."""
    conditions = pod["status"].get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def engine_start(pod: Mapping[str, Any]) -> str | None:
    """Identifies a start of the engine's container; None before the first."""
    for status in pod["status"].get("containerStatuses") or ():
        state = status.get("state") or {}
        if status["name"] == "engine" and ("running" in state or "terminated" in state or status.get("restartCount")):
            return str(status.get("restartCount", 0))
    return None


def taken_from(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The condition of a pod that the scheduler or Kueue ends, so that others get its GPUs; None for any other pod."""
    if "deletionTimestamp" not in pod["metadata"]:
        return None
    for each in pod["status"].get("conditions") or ():
        preempted = each.get("type") == "DisruptionTarget" and each.get("reason") == "PreemptionByScheduler"
        if each.get("status") == "True" and (preempted or each.get("type") == TERMINATION_TARGET):
            found: Mapping[str, Any] = each
            return found
    return None


def mounts(pod: Mapping[str, Any], claim: str) -> bool:
    """Whether a whole pod, as the API server has it, keeps this claim from being deleted."""
    volumes = pod["spec"].get("volumes") or ()
    named = any((each.get("persistentVolumeClaim") or {}).get("claimName") == claim for each in volumes)
    return named and bool(pod["spec"].get("nodeName")) and pod["status"].get("phase") not in ("Failed", "Succeeded")
