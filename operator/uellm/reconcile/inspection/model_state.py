"""What is known of a service's model: the facts, and the condition ModelAccessible. Pure."""

from __future__ import annotations

from typing import NamedTuple

from uellm.hub import DraftFacts, ModelFacts
from uellm.planner.units import size
from uellm.reconcile.conditions import Condition
from uellm.reconcile.obstacle import Obstacle
from uellm.text import counted

TYPE = "ModelAccessible"
FOUND, INSPECTING, NOT_ASKED = "Found", "Inspecting", "NotAsked"
_COMMIT_SHOWN = 12


class ModelState(NamedTuple):
    """What is known, and why not more."""

    condition: Condition
    facts: ModelFacts | None = None
    """None where they are not known, or where the spec has the configuration."""

    @property
    def obstacle(self) -> Obstacle | None:
        """Why the service cannot be planned yet; None where it can."""
        if self.condition.reason in (FOUND, NOT_ASKED):
            return None
        return Obstacle(self.condition.reason, self.condition.message)

    @property
    def is_awaited(self) -> bool:
        """True while an answer is under way."""
        return self.condition.reason == INSPECTING


GIVEN = ModelState(Condition(TYPE, "Unknown", NOT_ASKED, "spec.model.config is given, so the model is not looked up"))

INVALID = ModelState(Condition(TYPE, "Unknown", NOT_ASKED, "the spec cannot be read, so the model is not looked up"))


def inspecting(what: str) -> ModelState:
    """An answer is under way; `what` is done or waited for."""
    return ModelState(Condition(TYPE, "Unknown", INSPECTING, f"the model is being looked up: {what}"))


def refused(reason: str, message: str) -> ModelState:
    """There is an answer, and it is no."""
    return ModelState(Condition(TYPE, "False", reason, message))


def undecided(reason: str, message: str) -> ModelState:
    """Nobody could answer."""
    return ModelState(Condition(TYPE, "Unknown", reason, message))


def found(facts: ModelFacts) -> ModelState:
    """The facts are known."""
    at = f"commit {facts.commit[:_COMMIT_SHOWN]}: " if facts.commit else ""
    adapters = f"; {counted(len(facts.adapters), 'adapter')}" if facts.adapters else ""
    draft = f"; its draft: {_place(facts.draft)}" if facts.draft is not None else ""
    return ModelState(Condition(TYPE, "True", FOUND, at + _weights(facts) + adapters + draft), facts)


def warned(state: ModelState, warnings: tuple[str, ...]) -> ModelState:
    """The same with sentences that a person should know."""
    if not warnings or state.facts is None:
        return state
    return state._replace(condition=state.condition._replace(message="; ".join((state.condition.message, *warnings))))


def _place(draft: DraftFacts) -> str:
    at = f"commit {draft.facts.commit[:_COMMIT_SHOWN]}, " if draft.facts.commit else ""
    return f"{draft.source.partition('@')[0].removeprefix('hf://')}, {at}{_weights(draft.facts)}"


def _weights(facts: ModelFacts) -> str:
    if (facts.adapters or facts.draft) and not facts.config:
        return "spec.model.config is given, so the model itself is not looked up"
    if not facts.files:
        return "sized by its configuration: no safetensors headers"
    files = counted(facts.files, "safetensors file")
    if facts.tensors is None:
        return f"{files}, sized by its configuration: their headers are too long to be kept"
    return f"{size(facts.tensor_bytes)} in {files}"
