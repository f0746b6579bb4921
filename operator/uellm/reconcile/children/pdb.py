"""The PodDisruptionBudget: a drained node takes one replica at a time."""

from __future__ import annotations

from typing import Any

from uellm.reconcile.children.desired_state import DesiredState
from uellm.reconcile.names import child_metadata, selector


def pdb(desired: DesiredState) -> dict[str, Any]:
    """At most one replica may be evicted at a time; a pod that is not ready may always be."""
    name = desired.service.name
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": child_metadata(desired.document, name),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
