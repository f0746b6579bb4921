"""The PodDisruptionBudget: a drained node takes one replica at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.reconcile.names import child_metadata, selector


def pdb(document: Mapping[str, Any], budget: int) -> dict[str, Any]:
    """At most `budget` replicas may be evicted at a time: one, or none while a stand-in is awaited; see `stand_in`.

    A pod that is not ready may always be evicted.
    """
    name = document["metadata"]["name"]
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": child_metadata(document, name),
        "spec": {
            "maxUnavailable": budget,
            "selector": {"matchLabels": selector(name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
