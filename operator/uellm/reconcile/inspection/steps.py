"""What is said about a service's model while it is looked up. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime

from uellm.hub import ModelFacts
from uellm.reconcile.helper_pods import trouble
from uellm.reconcile.helper_pods.steps import Attempt, HelperInputs, HelperStep, HelperWords, Pod
from uellm.reconcile.inspection.model_state import ModelState, found, inspecting, refused, undecided

FAILED = "InspectionFailed"
_WORDS = HelperWords(inspecting, refused, undecided, FAILED, "the model could not be looked up")


def inspection_inputs(
    source: str,
    generation: int,
    facts: ModelFacts | None,
    pods: Sequence[Pod],
    attempt: Attempt[ModelState] | None,
    warnings: Mapping[str, str],
    pulls: Mapping[str, str],
) -> HelperInputs[ModelState]:
    """What a step of a look-up depends on."""
    known = None if facts is None else found(facts)
    return HelperInputs(_WORDS, source, generation, known, pods, attempt, warnings, pulls)


def after_silence(step: HelperStep[ModelState], pod: Pod, now: datetime, *, reads: bool) -> HelperStep[ModelState]:
    """The pod has no answer yet. `reads`: it says so itself."""
    name = pod["metadata"]["name"]
    what = f"pod {name} reads its configuration and headers" if reads else trouble.silent(pod, now)
    return dataclasses.replace(step, state=inspecting(what), create=False, ask=None)
