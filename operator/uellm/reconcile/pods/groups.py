"""Which pods form one replica, where it spans nodes: by the labels of LeaderWorkerSet's pods. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from uellm.api.names import GROUP_INDEX_LABEL, GROUP_LABEL, WORKER_INDEX_LABEL
from uellm.reconcile.pods.pod_state import is_ready

Pod = Mapping[str, Any]
P = TypeVar("P", bound=Mapping[str, Any])


def without_workers(pods: Iterable[P]) -> list[P]:
    """The pods that stand for a replica: those that are all of it, and the leaders of groups."""
    return [pod for pod in pods if not worker_index(pod)]


def worker_index(pod: Pod) -> int:
    """Which pod of its group it is; 0 for the leader, and for a pod that is no group's."""
    return _number(pod, WORKER_INDEX_LABEL)


def replica_of(pod: Pod) -> str:
    """The same text for all pods of a replica, and another one for those of any other."""
    labels = pod["metadata"].get("labels") or {}
    return f"group {labels.get(GROUP_INDEX_LABEL)}" if GROUP_LABEL in labels else str(pod["metadata"]["name"])


def group_index(pod: Pod) -> int | None:
    """The number of a pod's group; None for a pod that is no group's."""
    return _number(pod, GROUP_INDEX_LABEL) if GROUP_LABEL in (pod["metadata"].get("labels") or {}) else None


def complete_groups(pods: Iterable[Pod], size: int) -> int:
    """Groups of which all `size` pods are ready and none is being deleted."""
    ready = (pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and is_ready(pod))
    return sum(count >= size for count in Counter(map(replica_of, ready)).values())


def _number(pod: Pod, label: str) -> int:
    text = str((pod["metadata"].get("labels") or {}).get(label) or "0")
    return int(text) if text.isdecimal() else 0
