"""Why one more replica does not come about, and for how long that is waited for.

A rollout goes on in place where its additional pod cannot start beside those that run: it is refused, finds no node, or
its volume is attached elsewhere. Whatever else is wrong with it is the fault of the change, and the old pods serve on.
A stand-in for a replica whose node is being emptied is also given up where it cannot serve at all: no drain may hang.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from uellm.reconcile.children.rollout import Surge, is_rolling
from uellm.reconcile.children.stand_in import has_stand_in
from uellm.reconcile.conditions import clip
from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.engine_readiness import STALLED_RESTARTS, UNSTARTABLE, living
from uellm.reconcile.pods.kubelet_events import bound_since
from uellm.reconcile.pods.pod_state import is_ready
from uellm.reconcile.pods.refusal import pods_refused
from uellm.reconcile.times import moment

Object = Mapping[str, Any]

PATIENCE = timedelta(seconds=60)
# The Deployment's own default.
_PROGRESS_DEADLINE_S = 600
_ATTACH_FAILED = "FailedAttachVolume"
_LONGEST = 300


class _Suspicion(NamedTuple):
    """Something that becomes a reason to give up if it is still so at that time."""

    at: datetime
    why: str


class Surges:
    """What is to be known of each service's surges. It remembers when the last pod of a service had ended."""

    def __init__(self) -> None:
        self._ended: dict[Key, datetime] = {}

    def of(self, observed: Observed, now: datetime) -> Surge:
        """Everything but whether there is room for one more replica."""
        ended = self._note(observed, now)
        due = [each.why for each in _rollout_suspicions(observed, ended) if each.at <= now]
        hopeless = [each.why for each in _stand_in_suspicions(observed) if each.at <= now]
        return Surge(
            spare=_spare(observed, now),
            stuck=next(iter(due), ""),
            hopeless=next(iter(hopeless), ""),
            announced=_is_announced(observed),
        )

    def due_in_s(self, observed: Observed, now: datetime) -> float | None:
        """In how many seconds a surge or stand-in that is under way may have to be given up; None for none."""
        if observed.deployment is None:
            return None
        suspicions: list[_Suspicion] = []
        if has_stand_in(observed.deployment):
            suspicions += _stand_in_suspicions(observed)
        elif is_rolling(observed.deployment):
            suspicions += _rollout_suspicions(observed, self._ended.get(observed.key))
        return min(((each.at - now).total_seconds() for each in suspicions if each.at > now), default=None)

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._ended.pop(key, None)

    def _note(self, observed: Observed, now: datetime) -> datetime | None:
        """When the last of its pods had ended, or will have; None where none was seen to end."""
        deadlines = [moment(pod["metadata"]["deletionTimestamp"]) for pod in observed.pods if _is_ending(pod, now)]
        if deadlines:
            self._ended[observed.key] = max(deadlines)
        elif observed.key in self._ended:
            self._ended[observed.key] = min(self._ended[observed.key], now)
        return self._ended.get(observed.key)


def _rollout_suspicions(observed: Observed, ended: datetime | None) -> Iterator[_Suspicion]:
    """Why the additional pod of a rollout may not start. `ended`: when the last pod had ended, or will have.

    The GPUs of a pod of the same service that is ending are waited for.
    """
    yield from _refused(observed.deployment)
    for pod in _starting(observed.pods):
        bound, created = bound_since(pod), _created(pod)
        if not pod["spec"].get("nodeName"):
            if created is not None:
                yield _suspicion(max(filter(None, (created, ended))), _pending(pod))
        elif bound is not None and _warning(observed, pod).startswith(_ATTACH_FAILED):
            yield _suspicion(bound, _unstarted(pod, _warning(observed, pod)))


def _stand_in_suspicions(observed: Observed) -> Iterator[_Suspicion]:
    """Why there may never be one more replica that serves."""
    yield from _refused(observed.deployment)
    spec = observed.deployment["spec"] if observed.deployment is not None else {}
    deadline = timedelta(seconds=spec.get("progressDeadlineSeconds", _PROGRESS_DEADLINE_S))
    # The youngest: a replica that is there already may not be ready for a moment.
    for pod in sorted(_starting(observed.pods), key=lambda each: str(each["metadata"].get("creationTimestamp")))[-1:]:
        bound, created = bound_since(pod), _created(pod)
        if not pod["spec"].get("nodeName"):
            if created is not None:
                yield _suspicion(created, _pending(pod))
            continue
        since = bound or created
        if since is None:
            continue
        if why := _warning(observed, pod) or _container_trouble(pod):
            yield _suspicion(since, _unstarted(pod, why))
        yield _Suspicion(since + deadline, f"pod {pod['metadata']['name']} does not serve in time")


def _suspicion(since: datetime, why: str) -> _Suspicion:
    return _Suspicion(since + PATIENCE, clip(why, _LONGEST))


def _refused(deployment: Object | None) -> Iterator[_Suspicion]:
    """Pods that the API server does not let the Deployment create."""
    refused = pods_refused(deployment)
    if refused is not None and refused.since is not None:
        yield _suspicion(refused.since, f"the API server refuses the additional pod: {refused.message}")


def _starting(pods: Sequence[Object]) -> Iterator[Object]:
    return (pod for pod in living(pods) if not is_ready(pod))


def _created(pod: Object) -> datetime | None:
    created = pod["metadata"].get("creationTimestamp")
    return moment(created) if created else None


def _warning(observed: Observed, pod: Object) -> str:
    """The kubelet's last warning about a pod. With its image being pulled, volumes and network are there."""
    uid = pod["metadata"]["uid"]
    return "" if observed.image_pulls.get(uid) else observed.kubelet_warnings.get(uid, "")


def _pending(pod: Object) -> str:
    return f"the additional pod {pod['metadata']['name']} has been Pending for a minute"


def _unstarted(pod: Object, why: str) -> str:
    return f"the additional pod {pod['metadata']['name']} cannot start on node {pod['spec'].get('nodeName')}: {why}"


def _container_trouble(pod: Object) -> str:
    kinds = ("initContainerStatuses", "containerStatuses")
    for status in (each for kind in kinds for each in pod["status"].get(kind) or ()):
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in UNSTARTABLE:
            return f"{waiting['reason']} of container {status['name']}"
        if int(status.get("restartCount") or 0) >= STALLED_RESTARTS:
            return f"container {status['name']} was restarted {status['restartCount']} times"
    return ""


def _is_ending(pod: Object, now: datetime) -> bool:
    """Whether it is about to give its GPUs back: it has been deleted, and its grace period is not over."""
    deadline = pod["metadata"].get("deletionTimestamp")
    return deadline is not None and _holds_gpus(pod) and moment(deadline) > now


def _holds_gpus(pod: Object) -> bool:
    return bool(pod["spec"].get("nodeName")) and pod["status"].get("phase") not in ("Failed", "Succeeded")


def _spare(observed: Observed, now: datetime) -> str:
    """A pod beside those that serve all the replicas: it ends, or is replaced before it serves, and frees its GPUs."""
    held = [
        pod
        for pod in observed.pods
        if _holds_gpus(pod) and ("deletionTimestamp" not in pod["metadata"] or _is_ending(pod, now))
    ]
    serving = sum(is_ready(pod) for pod in living(observed.pods))
    if len(held) <= observed.replicas or serving < observed.replicas:
        return ""
    ends_first = min(held, key=lambda pod: ("deletionTimestamp" not in pod["metadata"], is_ready(pod)))
    return str(ends_first["metadata"]["name"])


def _is_announced(observed: Observed) -> bool:
    """Whether all its pods are on nodes that Karpenter manages."""
    homes = {name for pod in living(observed.pods) if (name := pod["spec"].get("nodeName"))}
    return bool(homes) and homes <= observed.karpenter_nodes
