"""The PodDisruptionBudget: a drained node takes one replica at a time."""

from __future__ import annotations

from typing import Any

from uellm.reconcile.children.desired_state import DesiredState
from uellm.reconcile.names import child_metadata, selector


def pdb(desired: DesiredState) -> dict[str, Any]:
    """At most one replica may be evicted at a time, and none that is to wait for its stand-in; see `stand_in`.

    A pod that is not ready may always be evicted.
    """
    name = desired.service.name
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": child_metadata(desired.document, name),
        "spec": {
            "maxUnavailable": desired.stand_in.budget,
            "selector": {"matchLabels": selector(name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
