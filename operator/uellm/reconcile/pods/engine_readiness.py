"""Readiness of the engine's pods: one reason and one sentence from a Deployment and its pods. Pure.

The worst pod decides: failing before preempted, unschedulable, queued, starting. A container that crashed and was
restarted counts as failing until its pod is ready, so that the condition does not flap with the crash loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from uellm.placement_report import ENGINE_FAILED, ENGINE_TOO_OLD, LaunchFailure
from uellm.reconcile.children.rollout import rollout_reason
from uellm.reconcile.children.stand_in import given_up, has_stand_in
from uellm.reconcile.kueue import QUEUE_LABEL, gates
from uellm.reconcile.names import revision_label
from uellm.reconcile.pods.groups import without_workers, worker_index
from uellm.reconcile.pods.pod_failures import PodFailures
from uellm.reconcile.pods.pod_state import taken_from
from uellm.reconcile.pods.refusal import PODS_REFUSED, pods_refused

# One failed start may be bad luck (a download, a device still being released); three in a row are not.
STALLED_RESTARTS = 3

_IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
UNSTARTABLE = frozenset(_IMAGE_REASONS | _CONFIG_REASONS)
"""Why kubelets keep a container waiting that may never start."""


class EngineReadiness(NamedTuple):
    """Whether all replicas serve, and why not. `stalled`: waiting will not help."""

    ready: bool
    reason: str
    message: str
    stalled: bool = False


class _Trouble(NamedTuple):
    rank: int
    """The lowest is the worst."""
    state: EngineReadiness


def living(pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Pods that are neither finished nor being deleted."""
    return [
        pod
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") not in ("Failed", "Succeeded")
    ]


def engine_readiness(
    deployment: Mapping[str, Any],
    pods: Sequence[Mapping[str, Any]],
    replicas: int,
    failures: PodFailures | None = None,
    kubelet_warnings: Mapping[str, str] = MappingProxyType({}),
    image_pulls: Mapping[str, str] = MappingProxyType({}),
    queue_words: Mapping[str, str] = MappingProxyType({}),
) -> EngineReadiness:
    """The readiness of an up-to-date Deployment with `replicas` pods.

    `failures`: pods that failed for good in the last hour; `kubelet_warnings`: why pods do not start, by uid;
    `image_pulls`: the images that they wait for; `queue_words`: why they wait in a queue.
    """
    alive = living(pods)
    if _rolled_out(deployment, alive, replicas):
        return EngineReadiness(True, "Ready", f"{replicas} of {replicas} replicas serve{_stand_in_words(deployment)}")
    if refused := _refused_by_server(deployment):
        return refused
    ready = int((deployment.get("status") or {}).get("readyReplicas") or 0)
    found = [*_preempted(pods), *_queued(alive, queue_words, f"{ready} of {replicas} replicas serve")]
    found += [trouble for pod in alive for trouble in _troubles(pod, kubelet_warnings.get(pod["metadata"]["uid"], ""))]
    if failures is not None:
        found.append(_failures_trouble(failures))
    if troubles := sorted(found, key=lambda trouble: trouble.rank):
        return troubles[0].state
    leaving = [pod for pod in pods if "deletionTimestamp" in pod["metadata"]]
    if len(without_workers(alive)) > replicas or leaving:
        how = rollout_reason(deployment)
        message = f"replicas are being replaced{f', {how}' if how else ''}; {ready} of {replicas} serve"
        return EngineReadiness(False, "RollingOut", message)
    return EngineReadiness(
        False, "EngineStarting", f"{ready} of {replicas} replicas serve; {_waiting_for(alive, image_pulls)}"
    )


def _failures_trouble(failures: PodFailures) -> _Trouble:
    """Pods that failed for good. Repeated failures come before the state of the pod that is tried next."""
    times = "1 pod has failed" if failures.total == 1 else f"{failures.total} pods have failed"
    message = f"{times} for good within the last hour, last {failures.message}"
    state = EngineReadiness(False, "PodFailed", message, stalled=failures.repeated)
    return _Trouble(0 if failures.repeated else 5, state)


def _stand_in_words(deployment: Mapping[str, Any]) -> str:
    if has_stand_in(deployment):
        return "; a stand-in is there for a replica whose node is being emptied"
    why = given_up(deployment)
    return f"; no stand-in came for a replica whose node is being emptied: {why}" if why else ""


def _rolled_out(deployment: Mapping[str, Any], alive: Sequence[Mapping[str, Any]], replicas: int) -> bool:
    """Whether the wanted replicas serve. A stand-in, which may still be starting, is one more of them."""
    status, extra = deployment.get("status") or {}, int(has_stand_in(deployment))
    return (
        _is_seen(deployment, alive)
        and int(deployment["spec"].get("replicas", 1)) == replicas + extra
        and all(
            replicas <= int(status.get(field) or 0) <= replicas + extra
            for field in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        )
        and status.get("replicas") == status.get("updatedReplicas")
    )


def _is_seen(deployment: Mapping[str, Any], alive: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the status is about the Deployment as it is, or as it was before a change that replaces no pod."""
    seen = int((deployment.get("status") or {}).get("observedGeneration") or 0)
    if seen >= int(deployment["metadata"].get("generation") or 0):
        return True
    revision = revision_label(deployment["spec"]["template"])
    return bool(revision) and all(revision_label(pod) == revision for pod in alive)


def _refused_by_server(deployment: Mapping[str, Any]) -> EngineReadiness | None:
    refused = pods_refused(deployment)
    return None if refused is None else EngineReadiness(False, PODS_REFUSED, refused.message, stalled=True)


def unschedulable_since(pod: Mapping[str, Any]) -> str | None:
    """Since when the scheduler has found no node for the pod (RFC 3339), or None."""
    condition = _scheduled(pod)
    if condition is None or condition.get("status") != "False" or condition.get("reason") != "Unschedulable":
        return None
    return str(condition.get("lastTransitionTime") or "") or None


def _preempted(pods: Iterable[Mapping[str, Any]]) -> Iterator[_Trouble]:
    """Pods that are being ended so that others get their GPUs: no fault of theirs, and the reason for what follows."""
    for pod in pods:
        if (taken := taken_from(pod)) is not None:
            where, said = pod["spec"].get("nodeName"), taken.get("message") or taken.get("reason") or taken["type"]
            reason = " ".join(str(said).split())
            message = f"pod {pod['metadata']['name']} on node {where} has to give up its GPUs: {reason}"
            yield _Trouble(3, EngineReadiness(False, "Preempted", message))


def _queued(pods: Iterable[Mapping[str, Any]], words: Mapping[str, str], serving: str) -> Iterator[_Trouble]:
    for pod in sorted(pods, key=worker_index):
        if held := gates(pod):
            name, queue = pod["metadata"]["name"], (pod["metadata"].get("labels") or {}).get(QUEUE_LABEL)
            where = f"waits in the queue {queue}" if queue else f"is held back by the scheduling gate {', '.join(held)}"
            why = words.get(pod["metadata"]["uid"], "")
            message = f"{serving}; pod {name} {where}{f': {why}' if why else ''}"
            yield _Trouble(4, EngineReadiness(False, "Queued", message))


def _scheduled(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    conditions = pod["status"].get("conditions") or ()
    return next((condition for condition in conditions if condition.get("type") == "PodScheduled"), None)


def _troubles(pod: Mapping[str, Any], kubelet_warning: str) -> Iterator[_Trouble]:
    name = pod["metadata"]["name"]
    if kubelet_warning:
        message = f"pod {name} cannot be started on node {pod['spec'].get('nodeName')}: {kubelet_warning}"
        yield _Trouble(2, EngineReadiness(False, "PodNotStarting", message))
    statuses = [
        *(pod["status"].get("initContainerStatuses") or ()),
        *(pod["status"].get("containerStatuses") or ()),
    ]
    for status in statuses:
        if trouble := _container_trouble(name, status):
            yield trouble
    if unschedulable_since(pod):
        message = (_scheduled(pod) or {}).get("message", "")
        yield _Trouble(3, EngineReadiness(False, "Unschedulable", f"no node for pod {name}: {message}"))


def _container_trouble(pod: str, status: Mapping[str, Any]) -> _Trouble | None:
    who = f"container {status['name']} of pod {pod}"
    waiting = (status.get("state") or {}).get("waiting") or {}
    reason = waiting.get("reason", "")
    if reason in _IMAGE_REASONS:
        message = f"{who}: image {status.get('image', '')} cannot be pulled: {waiting.get('message') or reason}"
        return _Trouble(1, EngineReadiness(False, "ImageUnavailable", message))
    if reason in _CONFIG_REASONS:
        return _Trouble(2, EngineReadiness(False, "ContainerRefused", f"{who}: {waiting.get('message') or reason}"))
    if status.get("ready"):
        return None
    ended = _last_failure(status)
    if ended is None:
        return None
    restarts, failure = int(status.get("restartCount") or 0), _launch_failure(ended)
    if failure is not None and failure.reason == ENGINE_TOO_OLD:
        message = f"{who}, image {status.get('image', '')}: {failure.message}"
        return _Trouble(0, EngineReadiness(False, ENGINE_TOO_OLD, message, stalled=True))
    message = f"{who} failed {_how(ended)}, {restarts} restarts so far: {_cause(ended, failure)}"
    return _Trouble(0, EngineReadiness(False, "EngineFailing", message, stalled=restarts >= STALLED_RESTARTS))


def _last_failure(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for state in (status.get("state") or {}, status.get("lastState") or {}):
        ended: Mapping[str, Any] | None = state.get("terminated")
        if ended is not None and ended.get("exitCode") != 0:
            return ended
    return None


def _how(ended: Mapping[str, Any]) -> str:
    status = f"with exit status {ended.get('exitCode')}"
    reason = ended.get("reason", "")
    return status if reason in ("", "Error") else f"{status} ({reason})"


def _launch_failure(ended: Mapping[str, Any]) -> LaunchFailure | None:
    return LaunchFailure.from_termination_message(str(ended.get("message") or ""))


def _cause(ended: Mapping[str, Any], failure: LaunchFailure | None) -> str:
    """The launcher's message; without one the last line, because a program prints its error at the end."""
    if failure is not None:
        return failure.message if failure.reason == ENGINE_FAILED else f"{failure.reason}: {failure.message}"
    lines = [line.strip() for line in str(ended.get("message") or "").splitlines() if line.strip()]
    return lines[-1] if lines else "no message; see its log"


def _waiting_for(pods: Sequence[Mapping[str, Any]], image_pulls: Mapping[str, str]) -> str:
    for pod in pods:
        name = pod["metadata"]["name"]
        if not pod["spec"].get("nodeName"):
            return f"pod {name} waits for the scheduler {pod['spec'].get('schedulerName', '')!r} to bind it"
        if not _engine_started(pod):
            pull = image_pulls.get(pod["metadata"]["uid"])
            return f"pod {name} is being started on {pod['spec']['nodeName']}{f', which pulls {pull}' if pull else ''}"
    return "the engine loads the model" if pods else "pods are being created"


def _engine_started(pod: Mapping[str, Any]) -> bool:
    statuses = pod["status"].get("containerStatuses") or ()
    return any(status["name"] == "engine" and "running" in (status.get("state") or {}) for status in statuses)
