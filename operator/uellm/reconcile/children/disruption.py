"""Marks that keep autoscalers away from a pod whose engine loads its model: the time would be lost. Pure.

Every pod is created with them. They are removed once it serves, or once it has failed so often that it may never serve.
Marks that the user's own pod template sets stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from uellm.api import LLMService
from uellm.reconcile.pods.pod_state import is_ready

MARKS = {
    "karpenter.sh/do-not-disrupt": "true",
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
}
_HOPELESS_RESTARTS = 3


class MarkedPod(NamedTuple):
    """A pod, and the marks to remove from it."""

    pod: str
    uid: str
    marks: tuple[str, ...]


def marks_to_lift(service: LLMService, pods: Iterable[Mapping[str, Any]]) -> list[MarkedPod]:
    """The pods whose marks are no longer needed. `pods`: living ones."""
    chosen = (service.spec.template.metadata or {}).get("annotations")
    ours = [mark for mark in MARKS if not isinstance(chosen, Mapping) or mark not in chosen]
    found = []
    for pod in pods:
        annotations = pod["metadata"].get("annotations") or {}
        marks = tuple(mark for mark in ours if annotations.get(mark) == MARKS[mark])
        if marks and (is_ready(pod) or _restarts(pod) >= _HOPELESS_RESTARTS):
            found.append(MarkedPod(pod["metadata"]["name"], pod["metadata"]["uid"], marks))
    return found


def _restarts(pod: Mapping[str, Any]) -> int:
    statuses = pod["status"].get("containerStatuses") or ()
    return max((int(status.get("restartCount") or 0) for status in statuses), default=0)
