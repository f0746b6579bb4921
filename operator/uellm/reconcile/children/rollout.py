"""How replicas are replaced when their template changes. Pure.

`spec.rollout` is followed where it is set. Left unset, it is decided at each change: with a surge, one more replica
starts before an old one ends, and nothing is missing meanwhile. It needs GPUs of its own. Where there are none at that
moment, or where the additional pod finds none within a minute after all, replicas are replaced in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from uellm.api import LLMService
from uellm.reconcile.drift import holds
from uellm.reconcile.names import ROLLOUT_ANNOTATION
from uellm.reconcile.times import moment
from uellm.text import counted

PENDING_AFTER_S = 60.0


class Surge(NamedTuple):
    """What a decision about a surge depends on."""

    gpus: int = 0
    """GPUs of a replica."""
    room: str = ""
    """A node that has room for another replica besides those that run; empty for none."""
    pending: str = ""
    """A pod that has been Pending for a minute; empty for none."""


NO_SURGE = Surge()


class RollingUpdate(NamedTuple):
    """A Deployment's strategy, and why it is this one; no reason where the user has set it."""

    max_surge: int
    max_unavailable: int
    why: str = ""

    def strategy(self) -> dict[str, Any]:
        """`spec.strategy` of the Deployment."""
        return {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": self.max_surge, "maxUnavailable": self.max_unavailable},
        }


def rolling_update(
    service: LLMService, live: Mapping[str, Any] | None, template: Mapping[str, Any], surge: Surge
) -> RollingUpdate:
    """The strategy of a Deployment that is to have this pod template. `live`: as it is now; None: there is none."""
    if service.spec.rollout is not None:
        return RollingUpdate(service.spec.rollout.max_surge, service.spec.rollout.max_unavailable)
    if live is None:
        return RollingUpdate(0, 1, "in place: nothing has been replaced yet")
    if not holds(template, live["spec"]["template"]):
        return _for_a_change(surge)
    before = _of(live)
    if before is None:
        return RollingUpdate(0, 1, "in place: nothing has been replaced yet")
    if before.max_surge and surge.pending:
        return RollingUpdate(0, 1, f"in place: the additional pod {surge.pending} has been Pending for a minute")
    return before


def rollout_reason(live: Mapping[str, Any] | None) -> str:
    """How the Deployment's replicas are being replaced, and why; empty where the user has set it."""
    return str((((live or {}).get("metadata") or {}).get("annotations") or {}).get(ROLLOUT_ANNOTATION) or "")


def pending_pod(pods: Iterable[Mapping[str, Any]], now: datetime) -> str:
    """The name of a pod that has had no node for a minute; empty for none."""
    for pod in pods:
        if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            continue
        created = pod["metadata"].get("creationTimestamp")
        if created and (now - moment(created)).total_seconds() >= PENDING_AFTER_S:
            return str(pod["metadata"]["name"])
    return ""


def _for_a_change(surge: Surge) -> RollingUpdate:
    gpus = counted(surge.gpus, "free GPU")
    if surge.room:
        return RollingUpdate(1, 0, f"surge: node {surge.room} has the {gpus} for one more replica meanwhile")
    return RollingUpdate(0, 1, f"in place: no node has the {gpus} for one more replica meanwhile")


def _of(live: Mapping[str, Any]) -> RollingUpdate | None:
    """What was decided last; None where the Deployment has another strategy."""
    found = ((live["spec"].get("strategy") or {}).get("rollingUpdate")) or {}
    shape = (found.get("maxSurge"), found.get("maxUnavailable"))
    why = rollout_reason(live)
    return RollingUpdate(*shape, why) if why and shape in ((1, 0), (0, 1)) else None
