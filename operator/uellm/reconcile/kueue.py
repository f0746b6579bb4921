"""Kueue: the labels by which it queues pods, the pods that it holds back, and what it says of them. Pure.

Kueue holds a pod back by a scheduling gate until its queue has quota. Pods with gates of others are the same to us: no
scheduler looks at them, so they need no GPUs yet, and nothing is wrong with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

Object = Mapping[str, Any]

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_CLASS_LABEL = "kueue.x-k8s.io/priority-class"
JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
"""On a Workload: the uid of the pod that it is for, or of the LeaderWorkerSet of the group of pods."""
GROUP_LABEL = "kueue.x-k8s.io/pod-group-name"
"""On a pod of a group: the name of the one Workload that is for all of them."""
TERMINATION_TARGET = "TerminationTarget"
"""The condition of a pod that Kueue deletes, to give its quota to others."""
_PASSED_ON = (QUEUE_LABEL, PRIORITY_CLASS_LABEL)


def queue_labels(obj: Object) -> dict[str, str]:
    """The labels of an object by which Kueue queues it. Kueue itself brings those of a Deployment or LeaderWorkerSet to
    its pods.
    """
    return _queue_labels(obj["metadata"])


def _queue_labels(metadata: Object) -> dict[str, str]:
    labels = _mapping(metadata.get("labels"))
    return {name: labels[name] for name in _PASSED_ON if labels.get(name)}


def _mapping(value: Any) -> Object:
    """The value where it is a mapping. A template is what the user wrote: the API server judges it later."""
    return value if isinstance(value, Mapping) else {}


def may_displace(service: Object) -> bool:
    """Whether pods of the service may get GPUs that others hold now: by their turn in a queue, or by their priority."""
    template = _mapping(service["spec"].get("template"))
    own = _queue_labels(_mapping(template.get("metadata")))
    priority = _mapping(template.get("spec")).get("priorityClassName")
    return QUEUE_LABEL in {**queue_labels(service), **own} or bool(priority)


def gates(pod: Object) -> tuple[str, ...]:
    """What holds the pod back from every scheduler; nothing once it has a node, or is being deleted."""
    if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
        return ()
    return tuple(str(each["name"]) for each in pod["spec"].get("schedulingGates") or ())


class WorkloadSelector(TypedDict, total=False):
    """Arguments of a list; one of them."""

    label_selector: str
    field_selector: str


def workload_selector(pod: Object) -> WorkloadSelector:
    """What selects the Workloads that are for a pod."""
    group = _mapping(pod["metadata"].get("labels")).get(GROUP_LABEL)
    if group:
        return {"field_selector": f"metadata.name={group}"}
    return {"label_selector": f"{JOB_UID_LABEL}={pod['metadata']['uid']}"}


def words_about(workloads: Iterable[Object]) -> str:
    """Why a pod waits, by the Workloads that are for it; empty where they do not say."""
    for workload in workloads:
        conditions = {each.get("type"): each for each in (workload.get("status") or {}).get("conditions") or ()}
        if workload["spec"].get("active") is False:
            return "its Workload is deactivated: set its spec.active to true"
        reserved = conditions.get("QuotaReserved") or {}
        # With quota, an admission check may still be missing.
        waits = conditions.get("Admitted") if reserved.get("status") == "True" else reserved
        if waits and waits.get("status") == "False" and waits.get("message"):
            return " ".join(str(waits["message"]).split())
    return ""
