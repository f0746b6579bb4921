"""Pods that the API server does not let a Deployment create: a quota, Pod Security, an admission webhook. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from uellm.reconcile.times import moment

PODS_REFUSED = "PodsRefused"
"""The reason of the conditions Ready and Stalled."""
PATIENCE = timedelta(seconds=60)
"""A webhook that is away for a moment refuses nothing for good."""


class PodsRefused(NamedTuple):
    """The Deployment's condition ReplicaFailure."""

    message: str
    since: datetime | None
    """None where the condition does not say."""


def pods_refused(deployment: Mapping[str, Any] | None) -> PodsRefused | None:
    """The API server's words; None where it refuses no pod. A LeaderWorkerSet never says so."""
    for condition in ((deployment or {}).get("status") or {}).get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            since = condition.get("lastTransitionTime")
            return PodsRefused(str(condition.get("message", "")), moment(since) if since else None)
    return None
