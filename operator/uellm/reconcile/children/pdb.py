"""The PodDisruptionBudget: a drained node takes one replica at a time."""

from __future__ import annotations

from typing import Any

from uellm.reconcile.children.wanted import Wanted
from uellm.reconcile.names import child_metadata, selector


def pdb(wanted: Wanted) -> dict[str, Any]:
    """At most one replica is missing by intent; a pod that is not ready may always be evicted."""
    name = wanted.service.name
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": child_metadata(wanted.document, name),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
