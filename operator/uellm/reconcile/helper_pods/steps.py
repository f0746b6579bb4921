"""Whether to make a helper pod, ask it or delete it, and what is said meanwhile. Pure; the time is an argument.

nothing known, no pod      a pod is made
a pod waits, or works      it is asked again soon
it has the answer          the answer is kept, and the pod is deleted
it was refused, or ended   the pod is deleted, and another one is made after a growing delay, or with the next spec
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from uellm.api.names import SOURCE_LABEL
from uellm.hub import LookUpRefusal
from uellm.reconcile.helper_pods import trouble

Pod = Mapping[str, Any]
S = TypeVar("S")
"""What is said: a state of the model."""

ASK_EVERY_S, WAIT_EVERY_S = 1.0, 10.0
"""How often a pod that runs is asked, and how soon it is looked at while it waits, if no event comes."""
REFUSAL_FIRST_S, FAILURE_FIRST_S, LONGEST_S = 60.0, 15.0, 600.0


@dataclass(frozen=True)
class HelperWords(Generic[S]):
    """How the states of one kind of helper pod are told."""

    under_way: Callable[[str], S]
    """The pod is at work; the text says what is done or waited for."""
    refused: Callable[[str, str], S]
    """The answer is no: reason and message."""
    undecided: Callable[[str, str], S]
    """Nobody could answer: reason and message."""
    failed_reason: str
    failed: str
    """Begins the message where a pod gave no answer."""


@dataclass(frozen=True)
class Attempt(Generic[S]):
    """The last attempt that brought no answer."""

    state: S
    due: datetime
    """When the next one is made."""
    generation: int
    """Of the spec: another one is tried at once."""
    times: int
    """How many there were in a row."""


@dataclass(frozen=True)
class HelperInputs(Generic[S]):
    """What a step depends on."""

    words: HelperWords[S]
    source: str
    generation: int
    known: S | None
    """What is said where the answer is known; None where it is not."""
    pods: Sequence[Pod]
    """The service's helper pods of this kind."""
    attempt: Attempt[S] | None
    warnings: Mapping[str, str]
    """Of kubelets, by pod uid."""
    pulls: Mapping[str, str]
    """Images that kubelets pull, by pod uid."""


@dataclass(frozen=True)
class HelperStep(Generic[S]):
    """What to do: delete pods, make one, or ask one; `state` is what is said meanwhile."""

    state: S
    remove: tuple[Pod, ...] = ()
    create: bool = False
    ask: Pod | None = None
    attempt: Attempt[S] | None = None
    """To be remembered in place of the last one."""
    again_s: float | None = None
    """When to look again, if nothing happens before."""


def next_step(seen: HelperInputs[S], now: datetime) -> HelperStep[S]:
    """The next step."""
    there = tuple(pod for pod in seen.pods if "deletionTimestamp" not in pod["metadata"])
    if seen.known is not None:
        return HelperStep(seen.known, remove=there)
    current = [pod for pod in there if (pod["metadata"].get("labels") or {}).get(SOURCE_LABEL) == seen.source]
    others = tuple(pod for pod in there if pod not in current[:1])
    if seen.attempt is not None and seen.attempt.generation == seen.generation and now < seen.attempt.due:
        wait_s = (seen.attempt.due - now).total_seconds()
        return HelperStep(seen.attempt.state, remove=there, attempt=seen.attempt, again_s=wait_s)
    if not current:
        state = seen.words.under_way("a pod is being created")
        return HelperStep(state, remove=others, create=True, attempt=seen.attempt, again_s=WAIT_EVERY_S)
    return _with_pod(seen, current[0], others, now)


def _with_pod(seen: HelperInputs[S], pod: Pod, others: tuple[Pod, ...], now: datetime) -> HelperStep[S]:
    if (how := trouble.ended(pod)) is not None:
        return given_up(failed(seen, how, now), (pod, *others), now)
    if trouble.runs(pod):
        state = seen.words.under_way(f"pod {pod['metadata']['name']} runs")
        return HelperStep(state, remove=others, ask=pod, attempt=seen.attempt, again_s=ASK_EVERY_S)
    uid = pod["metadata"]["uid"]
    state = seen.words.under_way(trouble.waits_for(pod, seen.warnings.get(uid, ""), seen.pulls.get(uid, "")))
    return HelperStep(state, remove=others, attempt=seen.attempt, again_s=WAIT_EVERY_S)


def after_refusal(seen: HelperInputs[S], refusal: LookUpRefusal, now: datetime) -> HelperStep[S]:
    """The pod was told no."""
    times = _times(seen)
    wait_s = refusal.retry_after_s or _growing(REFUSAL_FIRST_S, times)
    state = seen.words.refused(refusal.reason, refusal.message)
    attempt = Attempt(state, now + timedelta(seconds=wait_s), seen.generation, times)
    return given_up(attempt, tuple(seen.pods), now)


def failed(seen: HelperInputs[S], how: str, now: datetime) -> Attempt[S]:
    """An attempt whose pod gave no answer."""
    times = _times(seen)
    wait_s = _growing(FAILURE_FIRST_S, times)
    message = f"{seen.words.failed}, which is tried again in {wait_s:.0f} s: {how}"
    state = seen.words.undecided(seen.words.failed_reason, message)
    return Attempt(state, now + timedelta(seconds=wait_s), seen.generation, times)


def after_refused_creation(
    seen: HelperInputs[S], step: HelperStep[S], error: Exception, now: datetime
) -> HelperStep[S]:
    """The API server refused the pod that the step asked for."""
    attempt = failed(seen, f"the API server refuses the pod: {error}", now)
    wait_s = (attempt.due - now).total_seconds()
    return replace(step, state=attempt.state, attempt=attempt, again_s=wait_s)


def given_up(attempt: Attempt[S], pods: tuple[Pod, ...], now: datetime) -> HelperStep[S]:
    """The pods go, and the attempt is remembered."""
    there = tuple(pod for pod in pods if "deletionTimestamp" not in pod["metadata"])
    return HelperStep(attempt.state, remove=there, attempt=attempt, again_s=(attempt.due - now).total_seconds())


def _times(seen: HelperInputs[S]) -> int:
    same = seen.attempt is not None and seen.attempt.generation == seen.generation
    return seen.attempt.times + 1 if same and seen.attempt is not None else 1


def _growing(first_s: float, times: int) -> float:
    return float(min(first_s * 2 ** min(times - 1, 16), LONGEST_S))
