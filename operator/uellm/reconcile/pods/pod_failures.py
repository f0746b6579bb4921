"""Pods that have failed for good: found, counted, and removed. Pure; the time is an argument.

A container that crashes is started again in its pod. A pod is not: one that its kubelet evicted or did not admit, one
that was lost with its node, one on devices that cannot hold the plan, and one whose GPU is lost: a container keeps its
devices, so none can be started again. The Deployment makes another pod at once. The failed one is removed, and repeated
failures are reported. A pod that was preempted has not failed, nor has one that was
deleted and ended with an error. A group is deleted because a pod of it failed: that pod is counted.

The count is kept in the status, with the names of the pods that it includes, so that an operator that dies after
writing it counts no pod twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

from uellm.placement_report import GROUP_BROKEN, GROUP_DIFFERS, GROUP_INCOMPLETE, LaunchFailure
from uellm.reconcile.conditions import clip
from uellm.reconcile.pods.groups import group_index
from uellm.reconcile.pods.pod_state import is_ready, taken_from
from uellm.reconcile.profiled_node import ProfiledNode
from uellm.reconcile.times import moment, timestamp

# One failure may be bad luck, such as a node that is rebooted. The third in an hour is not.
REPEATED = 3
FORGOTTEN_AFTER_S = 3600.0
# The newest failed pod stays this long, for whoever wants to look at it.
SHOWN_S = 600.0
# A kubelet that works has a pod gone soon after its grace period.
STUCK_AFTER_S = 60.0
# Before another pod is tried, devices may be given back.
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 10.0, 300.0
MOST_NAMED = 32
_MESSAGE_LENGTH = 1024

DEVICE_LOST = "DeviceLost"
# The launcher's reasons where its devices cannot hold the plan: another node, or other devices, may.
MISPLACED = ("NoFit", "UnknownDevice", DEVICE_LOST)
# What a profile calls a GPU that no process can use until a person has repaired it, or its fabric manager.
GONE_GPUS = ("GPULost", "GPUMissing", "GPUNeedsReset", "FabricNotReady")
# Those where a group did not come about. LeaderWorkerSet starts it anew at once, so its pods are often seen ending.
UNGROUPED = (GROUP_DIFFERS, GROUP_INCOMPLETE)


class NodeState(Enum):
    """A pod's node, as far as the pod's end depends on it."""

    THERE = "there"
    LEAVING = "leaving"
    """It is cordoned, or an autoscaler is about to remove it."""
    UNREACHABLE = "unreachable"
    GONE = "gone"


class PodFate(Enum):
    """What has become of a pod."""

    FAILED = "failed"
    """Its phase is Failed."""
    STUCK = "stuck"
    """It is being deleted, and its kubelet cannot end it."""
    MISPLACED = "misplaced"
    """Its launcher cannot place the layers on its devices, or did not come to terms with its group, or lost a GPU."""
    RETRIED = "retried"
    """Its launcher missed a GPU, as happens while a node boots, and runs again."""


class PodFailure(NamedTuple):
    """A pod that will never serve."""

    pod: str
    uid: str
    node: str
    fate: PodFate
    reason: str
    """In CamelCase: the kubelet's own, where it gives one."""
    message: str
    """The kubelet's or the launcher's."""
    created: str


class PodFailures(NamedTuple):
    """The failures of the last hour: `status.podFailures`."""

    total: int
    reason: str
    message: str
    last_failed_at: datetime
    pods: tuple[str, ...] = ()
    """Those that the count includes and that are still there."""

    @property
    def repeated(self) -> bool:
        """True where waiting will not help."""
        return self.total >= REPEATED

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> PodFailures | None:
        """As it was written; None where there is none that can be read."""
        try:
            entry = status["podFailures"]
            last = moment(entry["lastFailedAt"])
            return cls(int(entry["count"]), entry["reason"], entry["message"], last, tuple(entry.get("pods") or ()))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def to_dict(self) -> dict[str, Any]:
        """`status.podFailures`."""
        last = timestamp(self.last_failed_at)
        entry = {"count": self.total, "reason": self.reason, "message": self.message, "lastFailedAt": last}
        return {**entry, "pods": list(self.pods)} if self.pods else entry


class Removal(NamedTuple):
    """A pod to delete; at once, without its kubelet, where `force`."""

    pod: str
    uid: str
    force: bool


def failed_pods(
    pods: Iterable[Mapping[str, Any]],
    nodes: Mapping[str, NodeState],
    now: datetime,
    lost: Mapping[str, LaunchFailure] = MappingProxyType({}),
) -> tuple[PodFailure, ...]:
    """Those of the pods that will never serve. `nodes`: the state of their nodes, by name; `lost`: see `lost_gpus`."""
    found = (_failure(pod, nodes.get(pod["spec"].get("nodeName", ""), NodeState.THERE), lost, now) for pod in pods)
    return tuple(failure for failure in found if failure is not None)


def lost_gpus(nodes: Iterable[ProfiledNode]) -> dict[str, LaunchFailure]:
    """Pods that have a GPU which has left its driver, by uid.

    Such a container may end in the runtime, before any launcher, and each runtime has words of its own for that.
    """
    return {
        node.holders[device.uuid]: LaunchFailure(
            DEVICE_LOST,
            f"GPU {device.index} ({device.uuid}) cannot be used any more ({device.health_reason}), and a container "
            "keeps its devices",
        )
        for node in nodes
        for device in node.facts.devices
        if device.health_reason in GONE_GPUS and device.uuid in node.holders
    }


def tally(before: PodFailures | None, found: Sequence[PodFailure], now: datetime) -> PodFailures | None:
    """The failures with those that were found now; None where there were none for an hour."""
    counted = before.pods if before is not None else ()
    known = tuple(failure.pod for failure in found if failure.pod in counted)
    # No more than can be named: the rest is counted when these are gone.
    fresh = [failure for failure in found if failure.pod not in counted][: MOST_NAMED - len(known)]
    there = (*known, *(failure.pod for failure in fresh))
    if fresh:
        last = max(fresh, key=lambda failure: failure.created)
        recent = before is not None and (now - before.last_failed_at).total_seconds() < FORGOTTEN_AFTER_S
        count = (before.total if before is not None and recent else 0) + len(fresh)
        return PodFailures(
            count, last.reason, clip(_sentence(last), _MESSAGE_LENGTH), now.replace(microsecond=0), there
        )
    if before is None or (now - before.last_failed_at).total_seconds() >= FORGOTTEN_AFTER_S:
        return None
    return before._replace(pods=there)


def removals(
    failures: PodFailures | None, found: Sequence[PodFailure], now: datetime
) -> tuple[tuple[Removal, ...], float | None]:
    """The pods to delete now, and in how many seconds there are others; None: not before something happens."""
    if failures is None:
        return (), None
    age_s = (now - failures.last_failed_at).total_seconds()
    newest = max((each for each in found if each.fate is PodFate.FAILED), key=lambda each: each.created, default=None)
    due_s = {each: _due_s(each, failures.total, shown=each is newest) for each in found if each.pod in failures.pods}
    gone = tuple(
        Removal(each.pod, each.uid, each.fate is PodFate.STUCK) for each, at_s in due_s.items() if age_s >= at_s
    )
    later = [at_s - age_s for at_s in due_s.values() if age_s < at_s < float("inf")]
    return gone, min(later, default=None)


def _due_s(failure: PodFailure, count: int, *, shown: bool) -> float:
    """How long after the last failure the pod is deleted."""
    if failure.fate is PodFate.MISPLACED:
        return float(min(FIRST_BACKOFF_S * 2 ** min(count - 1, 16), LONGEST_BACKOFF_S))
    if failure.fate is PodFate.RETRIED:
        return float("inf")
    if failure.fate is PodFate.STUCK:
        # As long as the Node is there, its kubelet may come back and still run the pod.
        return 0.0 if failure.reason == "NodeGone" else float("inf")
    return SHOWN_S if shown else 0.0


def _failure(
    pod: Mapping[str, Any], node: NodeState, lost: Mapping[str, LaunchFailure], now: datetime
) -> PodFailure | None:
    status, deleted = pod["status"], "deletionTimestamp" in pod["metadata"]
    if status.get("phase") == "Failed" and taken_from(pod) is None:
        reason = str(status.get("reason") or _disruption(status))
        if reason or not deleted:
            message = str(status.get("message") or "its kubelet gives no reason")
            return _made(pod, PodFate.FAILED, reason or "Failed", message)
        if (ended := _ended_group(pod)) is not None:
            return _made(pod, PodFate.FAILED, ended.reason, ended.message)
    failure = _misplaced(pod)
    if failure is None and not is_ready(pod):
        failure = lost.get(pod["metadata"]["uid"])
    if deleted and (failure is None or failure.reason not in UNGROUPED):
        return _stuck(pod, node, now)
    if failure is None:
        return None
    retried = pod["metadata"]["uid"] not in lost and _runs_again(pod)
    return _made(pod, PodFate.RETRIED if retried else PodFate.MISPLACED, failure.reason, failure.message)


def _stuck(pod: Mapping[str, Any], node: NodeState, now: datetime) -> PodFailure | None:
    """A pod whose grace period is over, on a node that cannot end it."""
    deadline = moment(pod["metadata"]["deletionTimestamp"])
    if node in (NodeState.THERE, NodeState.LEAVING) or now < deadline + timedelta(seconds=STUCK_AFTER_S):
        return None
    if node is NodeState.GONE:
        return _made(
            pod, PodFate.STUCK, "NodeGone", "it is being deleted, and its node is gone; it is removed by force"
        )
    message = (
        "it is being deleted, and its node does not answer: bring the node back, delete the Node, or taint it with "
        "node.kubernetes.io/out-of-service"
    )
    return _made(pod, PodFate.STUCK, "NodeUnreachable", message)


def _misplaced(pod: Mapping[str, Any]) -> LaunchFailure | None:
    """The failure of a launcher whose devices cannot hold the plan; None for any other pod."""
    # A pod that serves has its GPUs back.
    reasons = {*MISPLACED, *UNGROUPED} - ({DEVICE_LOST} if is_ready(pod) else set())
    return next((each for each in _told(pod) if each.reason in reasons), None)


def _runs_again(pod: Mapping[str, Any]) -> bool:
    """Whether a container runs whose launcher missed a GPU before."""
    running = [each for each in pod["status"].get("containerStatuses") or () if "running" in (each.get("state") or {})]
    ended = {"status": {"containerStatuses": running}}
    return any(each.reason == DEVICE_LOST for each in _told(ended))


def _ended_group(pod: Mapping[str, Any]) -> LaunchFailure | None:
    """Why a pod that is being deleted ended its group; None where it ended as it was told to, or with another pod."""
    if group_index(pod) is None:
        return None
    return next((each for each in _told(pod) if each.reason not in (*UNGROUPED, GROUP_BROKEN)), None)


def _told(pod: Mapping[str, Any]) -> Iterator[LaunchFailure]:
    """What its launcher said at the end of its containers."""
    for status in pod["status"].get("containerStatuses") or ():
        for state in (status.get("state") or {}, status.get("lastState") or {}):
            message = str((state.get("terminated") or {}).get("message") or "")
            if (failure := LaunchFailure.from_termination_message(message)) is not None:
                yield failure


def _made(pod: Mapping[str, Any], fate: PodFate, reason: str, message: str) -> PodFailure:
    metadata = pod["metadata"]
    node = str(pod["spec"].get("nodeName") or "")
    created = str(metadata.get("creationTimestamp") or "")
    return PodFailure(metadata["name"], metadata["uid"], node, fate, clip(reason, 63), message.strip(), created)


def _disruption(status: Mapping[str, Any]) -> str:
    conditions = status.get("conditions") or ()
    found = (each for each in conditions if each.get("type") == "DisruptionTarget" and each.get("status") == "True")
    return str(next((each.get("reason") for each in found), ""))


def _sentence(failure: PodFailure) -> str:
    where = f" on node {failure.node}" if failure.node else ""
    return f"pod {failure.pod}{where}: {failure.reason}: {failure.message}"
