"""From what the pods of a service report to what the autoscaler takes, and the time that they took to start. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from uellm.api.attainment_report import LoadMeasurement
from uellm.autoscaling import Interval
from uellm.reconcile.kueue import QUEUE_LABEL
from uellm.reconcile.times import moment
from uellm.step_time import StepTime

FRESH_S = 120.0
"""A pod that got ready longer ago may have got ready again, so it says nothing about starting."""
ROUNDING_S = 5.0
_TYPICAL = (256, 16_384, 16)
"""Prompt tokens, KV tokens and sequences of a step that steps are compared by."""


def interval(
    before: Mapping[str, LoadMeasurement],
    loads: Mapping[str, LoadMeasurement],
    *,
    end_s: float,
    seconds: float,
    ready: int,
) -> Interval:
    """What happened between two readings, by pod uid. A pod that was not there before began at 0.

    `ready`: replicas that are ready. Those of them that did not report count as the others do on average.
    """
    nothing = LoadMeasurement(0, 0, 0, 0, 0, 0)
    pairs = [(before.get(uid, nothing), now) for uid, now in loads.items()]
    pairs = [(_complete(nothing if _restarted(then, now) else then), _complete(now)) for then, now in pairs]
    ended = sum(now.ended - then.ended for then, now in pairs)
    missed = sum(max(0, now.missed - then.missed) for then, now in pairs)
    tokens = sum(max(0, now.prompt_tokens - then.prompt_tokens) * (1.0 - now.cached_share) for then, now in pairs)
    in_flight = [sum(each.running + each.queued for each in side) for side in zip(*pairs, strict=True)] or [0, 0]
    arrived = max(0, ended + in_flight[1] - in_flight[0])
    outputs = sum(max(0, now.output_tokens - then.output_tokens) for then, now in pairs)
    times = ready / len(loads) if loads else 1.0
    return Interval(
        end_s,
        seconds,
        round(times * arrived),
        round(times * ended),
        round(times * max(0, ended - missed)),
        round(times * sum(max(0, (now.prompts or 0) - (then.prompts or 0)) for then, now in pairs)),
        times * tokens,
        round(times * sum(max(0, (now.answers or 0) - (then.answers or 0)) for then, now in pairs)),
        times * outputs,
        round(times * sum(now.running + now.passing for _, now in pairs)),
        round(times * sum(now.queued for _, now in pairs)),
        ready,
    )


def any_passed(before: Mapping[str, LoadMeasurement], loads: Mapping[str, LoadMeasurement]) -> bool:
    """Whether requests of routes that are not scheduled have ended between two readings of the same pods."""
    # A smaller count is that of a sidecar that was started anew.
    return any(load.passed not in (0, before[uid].passed) for uid, load in loads.items())


def measured_step(loads: Iterable[LoadMeasurement]) -> StepTime | None:
    """The measured step of the replica in the middle, the faster of two; None: none was measured."""
    steps = sorted((each.step for each in loads if each.step is not None), key=lambda step: step.step_s(*_TYPICAL))
    return steps[(len(steps) - 1) // 2] if steps else None


def _complete(load: LoadMeasurement) -> LoadMeasurement:
    """With what a sidecar of an earlier release does not tell: its tokens stand for all requests that ended."""
    return load if load.prompts is not None else load._replace(prompts=load.ended, answers=load.ended)


def _restarted(then: LoadMeasurement, now: LoadMeasurement) -> bool:
    """Whether a counter fell: the sidecar was started anew."""
    return (
        now.ended < then.ended
        or now.missed < then.missed
        or now.prompt_tokens < then.prompt_tokens
        or now.output_tokens < then.output_tokens
    )


def startup_s(pods: Sequence[Mapping[str, Any]], now: datetime, most_s: float) -> float | None:
    """The longest time that pods took which have just become ready for the first time; None without any."""
    times = [_startup_s(pod, now) for pod in pods]
    known = [seconds for seconds in times if seconds is not None and 0.0 < seconds <= most_s]
    return max((ROUNDING_S * round(seconds / ROUNDING_S) for seconds in known), default=None)


def _startup_s(pod: Mapping[str, Any], now: datetime) -> float | None:
    if any(status.get("restartCount") for status in pod["status"].get("containerStatuses") or ()):
        return None
    for condition in pod["status"].get("conditions") or ():
        if condition.get("type") == "Ready" and condition.get("status") == "True":
            try:
                at, created = moment(condition["lastTransitionTime"]), moment(_began(pod))
            except (KeyError, ValueError):
                return None
            return (at - created).total_seconds() if (now - at).total_seconds() < FRESH_S else None
    return None


def _began(pod: Mapping[str, Any]) -> str:
    """From when on the pod's start is counted: a wait in a queue says nothing about the next start."""
    conditions = pod["status"].get("conditions") or ()
    if QUEUE_LABEL in (pod["metadata"].get("labels") or {}):
        for each in conditions:
            if each.get("type") == "PodScheduled" and each.get("status") == "True":
                return str(each["lastTransitionTime"])
    return str(pod["metadata"]["creationTimestamp"])
