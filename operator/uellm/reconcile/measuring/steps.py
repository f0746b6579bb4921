"""What to do next about the measuring of a node. Pure; the time is an argument.

nothing to measure          nothing
something, and no pod       one is made, unless engines come, or the image is neither there nor wanted there
the pod runs                nothing: it ends by itself, or somebody preempts it
it has ended                it is deleted; after a failure the next one waits, longer each time
it was preempted, or        the next one waits for a minute
others were quicker
the node is not selected    the pod is deleted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from uellm.reconcile.helper_pods import trouble
from uellm.reconcile.measuring.images import full_reference
from uellm.reconcile.measuring.needs import MeasuringNeed
from uellm.reconcile.measuring.settings import MeasuringSettings

Pod = Mapping[str, Any]

AFTER_END_S = 30.0
"""Until the profiler has read what a pod wrote."""
AFTER_PREEMPTION_S = 60.0
FAILURE_FIRST_S, FAILURE_LONGEST_S = 60.0, 3600.0
LOOK_FOR_IMAGE_S = 60.0
_AWAY = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "node.kubernetes.io/out-of-service")


class MeasuringAttempt(NamedTuple):
    """The last pod of a node that ended."""

    due: datetime
    """No other one is made before."""
    failures: int = 0
    """How many failed in a row."""
    told: str = ""
    """What was told about it last."""


class MeasuringInputs(NamedTuple):
    """What a step depends on."""

    need: MeasuringNeed | None
    node: Mapping[str, Any] | None
    """Labels and taints."""
    pods: Sequence[Pod]
    """The node's measuring pods."""
    attempt: MeasuringAttempt | None
    engines_come: bool
    """Pods of engines have just been made and have no node yet: GPUs that are free may be theirs."""


@dataclass(frozen=True)
class MeasuringStep:
    """What to do: delete pods, or make one."""

    remove: tuple[Pod, ...] = ()
    create: MeasuringNeed | None = None
    attempt: MeasuringAttempt | None = None
    """To be remembered in place of the last one."""
    tell: str = ""
    """What the node's administrator is told; empty for nothing."""


def next_measuring_step(seen: MeasuringInputs, settings: MeasuringSettings, now: datetime) -> MeasuringStep:
    """The next step on one node."""
    staying = tuple(pod for pod in seen.pods if "deletionTimestamp" not in pod["metadata"])
    if not is_selected(seen.node, settings):
        return MeasuringStep(remove=staying)
    if len(staying) < len(seen.pods):
        # Ours or somebody else's decision: either way the GPUs are not to be taken again at once.
        due = now + timedelta(seconds=AFTER_PREEMPTION_S)
        known = seen.attempt
        kept = known if known is not None and known.due > now else MeasuringAttempt(due)
        return MeasuringStep(attempt=kept)
    if staying:
        return _with_pod(seen, staying[0], now)
    waits = seen.attempt is not None and now < seen.attempt.due
    if seen.need is None or waits or seen.engines_come or is_away(seen.node):
        return MeasuringStep(attempt=seen.attempt)
    return MeasuringStep(create=seen.need, attempt=seen.attempt)


def _with_pod(seen: MeasuringInputs, pod: Pod, now: datetime) -> MeasuringStep:
    if pod["status"].get("phase") == "Succeeded":
        due = now + timedelta(seconds=AFTER_END_S)
        return MeasuringStep(remove=(pod,), attempt=MeasuringAttempt(due))
    how = trouble.ended(pod)
    if how is None:
        return MeasuringStep(attempt=seen.attempt)
    if _lost_the_race(pod):
        due = now + timedelta(seconds=AFTER_PREEMPTION_S)
        return MeasuringStep(remove=(pod,), attempt=MeasuringAttempt(due))
    step = after_measuring_failure(seen.attempt, how, now)
    return MeasuringStep(remove=(pod,), attempt=step.attempt, tell=step.tell)


def _lost_the_race(pod: Pod) -> bool:
    """Whether the kubelet refused it because the GPUs were given away a moment before."""
    reason = str(pod["status"].get("reason") or "")
    return reason.startswith("OutOf") or reason in ("UnexpectedAdmissionError", "Preempting", "Preempted")


def after_measuring_failure(before: MeasuringAttempt | None, how: str, now: datetime) -> MeasuringStep:
    """A pod failed, or was refused. It is told once for each cause."""
    failures = before.failures + 1 if before is not None else 1
    wait_s = min(FAILURE_FIRST_S * 2.0 ** min(failures - 1, 16), FAILURE_LONGEST_S)
    told = f"the GPUs are not measured, so plans assume the rates of their product: {how}"
    again = before is not None and before.told == told
    attempt = MeasuringAttempt(now + timedelta(seconds=wait_s), failures, told)
    return MeasuringStep(attempt=attempt, tell="" if again else told)


def is_selected(node: Mapping[str, Any] | None, settings: MeasuringSettings) -> bool:
    """Whether measuring pods may run on a node."""
    if node is None:
        return False
    labels = node["metadata"].get("labels") or {}
    return all(labels.get(name) == value for name, value in settings.node_selector.items())


def is_away(node: Mapping[str, Any] | None) -> bool:
    """Whether a node is being emptied, or does not answer."""
    spec = (node or {}).get("spec") or {}
    return bool(spec.get("unschedulable")) or any(taint.get("key") in _AWAY for taint in spec.get("taints") or ())


def image_for(candidates: Sequence[str], wanted: Sequence[str], present: frozenset[str]) -> str | None:
    """The image to measure in: one that is on the node, else one that an engine is about to need there.

    `candidates`: the images of engines; `wanted`: those of engines planned on the node; `present`: what is there.
    """
    for image in (*wanted, *candidates):
        if full_reference(image) in present:
            return image
    return next(iter(wanted), None)
