"""What a helper pod waits for, or how it ended, in the kubelet's words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from uellm.pod_interface import METRICS_PORT
from uellm.reconcile.conditions import clip
from uellm.reconcile.times import moment

Pod = Mapping[str, Any]

# The process listens before it begins.
HIDDEN_AFTER_S = 30.0
_LONGEST_MESSAGE = 1024
# Of a container that merely has not been started yet.
_USUAL = ("", "ContainerCreating", "PodInitializing")


def ended(pod: Pod) -> str | None:
    """How the pod ended, as a sentence; None while it has not."""
    status, name = pod["status"], pod["metadata"]["name"]
    phase = status.get("phase")
    if phase == "Succeeded":
        return f"pod {name} has ended before the operator could read its answer from port {METRICS_PORT}"
    if phase != "Failed":
        return None
    said = [str(status[each]) for each in ("reason", "message") if status.get(each)]
    said += [_termination(each) for each in _states(pod, "terminated")]
    return f"pod {name} failed: {_line('; '.join(filter(None, said)) or 'its kubelet gives no reason')}"


def waits_for(pod: Pod, kubelet_warning: str, image_pull: str = "") -> str:
    """What a pod that does not run yet waits for, as a sentence.

    `kubelet_warning`, `image_pull`: from its Events; empty for none.
    """
    name = pod["metadata"]["name"]
    for waiting in _states(pod, "waiting"):
        reason = str(waiting.get("reason") or "")
        if reason not in _USUAL:
            return f"pod {name} is not started: {_line(waiting.get('message') or reason)}"
    if kubelet_warning:
        return f"pod {name} is not started: {_line(kubelet_warning)}"
    for condition in pod["status"].get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"no node for pod {name}: {_line(condition.get('message') or condition.get('reason'))}"
    node = pod["spec"].get("nodeName")
    pull = f", which pulls {_line(image_pull)}" if node and image_pull else ""
    return f"pod {name} is being started{f' on {node}' if node else ''}{pull}"


def runs(pod: Pod) -> bool:
    """Whether the pod can be asked."""
    return bool(pod["status"].get("podIP")) and any(_states(pod, "running"))


def silent(pod: Pod, now: datetime) -> str:
    """What to say of a pod that runs and does not answer."""
    name = pod["metadata"]["name"]
    if not is_hidden(pod, now):
        return f"pod {name} runs"
    return f"pod {name} runs and does not answer: allow the operator to reach port {METRICS_PORT} of the pods"


def is_hidden(pod: Pod, now: datetime) -> bool:
    """Whether a pod that does not answer has run for so long that something keeps its answers away."""
    since = [str(each.get("startedAt") or "") for each in _states(pod, "running")]
    try:
        age_s = (now - moment(since[0])).total_seconds() if since else 0.0
    except ValueError:
        age_s = 0.0
    return age_s >= HIDDEN_AFTER_S


def _states(pod: Pod, state: str) -> Iterator[Mapping[str, Any]]:
    for each in pod["status"].get("containerStatuses") or ():
        found = (each.get("state") or {}).get(state)
        if found is not None:
            yield found


def _termination(terminated: Mapping[str, Any]) -> str:
    lines = [line.strip() for line in str(terminated.get("message") or "").splitlines() if line.strip()]
    reason = str(terminated.get("reason") or "")
    how = f"exit status {terminated.get('exitCode')}{f' ({reason})' if reason not in ('', 'Error') else ''}"
    return f"{how}: {lines[-1]}" if lines else how


def _line(text: Any) -> str:
    return clip(" ".join(str(text).split()), _LONGEST_MESSAGE)
