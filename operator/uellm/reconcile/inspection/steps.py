"""What to do next about a service's model, and what the condition says meanwhile. Pure; the time is an argument.

nothing known, no pod      a pod is made
a pod waits, or reads      it is asked again soon
it has the facts           they are kept, and the pod is deleted
it was refused, or ended   the pod is deleted, and another one is made after a growing delay, or with the next spec
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from uellm.api.names import SOURCE_LABEL
from uellm.hub import LookUpRefusal, ModelFacts
from uellm.reconcile.inspection import pod_trouble
from uellm.reconcile.inspection.model_state import ModelState, found, inspecting, refused, undecided

Pod = Mapping[str, Any]

ASK_EVERY_S, WAIT_EVERY_S = 1.0, 10.0
"""How often a pod that runs is asked, and how soon it is looked at while it waits, if no event comes."""
REFUSAL_FIRST_S, FAILURE_FIRST_S, LONGEST_S = 60.0, 15.0, 600.0
FAILED = "InspectionFailed"


class Attempt(NamedTuple):
    """The last look-up that brought no facts."""

    state: ModelState
    due: datetime
    """When the next one is made."""
    generation: int
    """Of the spec: another one is tried at once."""
    times: int
    """How many there were in a row."""


class InspectionInputs(NamedTuple):
    """What a step depends on."""

    source: str
    generation: int
    facts: ModelFacts | None
    pods: Sequence[Pod]
    """The service's inspection pods."""
    attempt: Attempt | None
    warnings: Mapping[str, str]
    """Of kubelets, by pod uid."""


@dataclass(frozen=True)
class InspectionStep:
    """What to do: delete pods, make one, or ask one; `state` is what is said meanwhile."""

    state: ModelState
    remove: tuple[Pod, ...] = ()
    create: bool = False
    ask: Pod | None = None
    attempt: Attempt | None = None
    """To be remembered in place of the last one."""
    again_s: float | None = None
    """When to look again, if nothing happens before."""


def next_step(seen: InspectionInputs, now: datetime) -> InspectionStep:
    """The next step."""
    there = tuple(pod for pod in seen.pods if "deletionTimestamp" not in pod["metadata"])
    if seen.facts is not None:
        return InspectionStep(found(seen.facts), remove=there)
    current = [pod for pod in there if (pod["metadata"].get("labels") or {}).get(SOURCE_LABEL) == seen.source]
    others = tuple(pod for pod in there if pod not in current[:1])
    if seen.attempt is not None and seen.attempt.generation == seen.generation and now < seen.attempt.due:
        wait_s = (seen.attempt.due - now).total_seconds()
        return InspectionStep(seen.attempt.state, remove=there, attempt=seen.attempt, again_s=wait_s)
    if not current:
        state = inspecting("a pod is being created")
        return InspectionStep(state, remove=others, create=True, attempt=seen.attempt, again_s=WAIT_EVERY_S)
    return _with_pod(seen, current[0], others, now)


def _with_pod(seen: InspectionInputs, pod: Pod, others: tuple[Pod, ...], now: datetime) -> InspectionStep:
    if (how := pod_trouble.ended(pod)) is not None:
        attempt = failed(seen, how, now)
        return _given_up(attempt, (pod, *others), now)
    if pod_trouble.runs(pod):
        state = inspecting(f"pod {pod['metadata']['name']} runs")
        return InspectionStep(state, remove=others, ask=pod, attempt=seen.attempt, again_s=ASK_EVERY_S)
    state = inspecting(pod_trouble.waits_for(pod, seen.warnings.get(pod["metadata"]["uid"], "")))
    return InspectionStep(state, remove=others, attempt=seen.attempt, again_s=WAIT_EVERY_S)


def after_refusal(seen: InspectionInputs, refusal: LookUpRefusal, now: datetime) -> InspectionStep:
    """The pod was told no."""
    times = _times(seen)
    wait_s = refusal.retry_after_s or _growing(REFUSAL_FIRST_S, times)
    attempt = Attempt(refused(refusal.reason, refusal.message), now + timedelta(seconds=wait_s), seen.generation, times)
    return _given_up(attempt, tuple(seen.pods), now)


def after_silence(step: InspectionStep, pod: Pod, now: datetime, *, reads: bool) -> InspectionStep:
    """The pod has no answer yet. `reads`: it says so itself."""
    name = pod["metadata"]["name"]
    what = f"pod {name} reads its configuration and headers" if reads else pod_trouble.silent(pod, now)
    return InspectionStep(inspecting(what), step.remove, attempt=step.attempt, again_s=step.again_s)


def failed(seen: InspectionInputs, how: str, now: datetime) -> Attempt:
    """An attempt whose pod gave no answer."""
    times = _times(seen)
    wait_s = _growing(FAILURE_FIRST_S, times)
    message = f"the model could not be looked up, which is tried again in {wait_s:.0f} s: {how}"
    return Attempt(undecided(FAILED, message), now + timedelta(seconds=wait_s), seen.generation, times)


def _given_up(attempt: Attempt, pods: tuple[Pod, ...], now: datetime) -> InspectionStep:
    there = tuple(pod for pod in pods if "deletionTimestamp" not in pod["metadata"])
    return InspectionStep(attempt.state, remove=there, attempt=attempt, again_s=(attempt.due - now).total_seconds())


def _times(seen: InspectionInputs) -> int:
    same = seen.attempt is not None and seen.attempt.generation == seen.generation
    return seen.attempt.times + 1 if same and seen.attempt is not None else 1


def _growing(first_s: float, times: int) -> float:
    return float(min(first_s * 2 ** min(times - 1, 16), LONGEST_S))
