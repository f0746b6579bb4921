"""Speculation that the user set with `--speculative-config`: what it adds to the engine's memory.

Drafts are found in the prompt (ngram, suffix), or made by the layers for multi-token prediction that the checkpoint has
beside the model (mtp), or by a model of its own. The engine verifies all drafted tokens of a sequence in one step, so a
step has a row of logits for each of them (vllm/config/speculative.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from uellm.errors import PlanError
from uellm.models import Architecture
from uellm.models.shown import shown
from uellm.planner.vllm.flags import UserArgs

FLAG = "--speculative-config"
FLAGS = (FLAG, "-sc")
WITHOUT_WEIGHTS = ("ngram", "[ngram]", "ngram_gpu", "suffix")


@dataclass(frozen=True, slots=True)
class Speculation:
    """How drafts are made."""

    method: str
    """Empty: the engine finds it out from the draft's model."""
    tokens: int
    """Drafted for each sequence in a step."""

    @property
    def predicts_itself(self) -> bool:
        """Whether the model's own layers for multi-token prediction draft."""
        return self.method == "mtp" or self.method.endswith("_mtp")


def speculation_note(speculation: Speculation, model: Architecture) -> str:
    """What of it is in the plan, as a sentence."""
    method = speculation.method
    if method in WITHOUT_WEIGHTS:
        return f"speculation by {method} takes no weights; predictions are those without it"
    if speculation.predicts_itself and model.predicting_bytes:
        return f"speculation by {method}: its layers and their KV cache are counted, and predictions are without it"
    return (
        f"{FLAG} is set in engine.args, and the draft's model is not in the plan: its weights, cache and time come "
        "on top; leave it room with --gpu-memory-utilization"
    )


def speculation_of(user: UserArgs) -> Speculation | None:
    """What the user set; None for none. Raises PlanError InvalidOverride for what is no JSON object."""
    text = next((found for flag in FLAGS if (found := user.text(flag)) is not None), None)
    if text is None:
        return None
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise PlanError("InvalidOverride", f"spec.engine.args: {FLAG} {shown(text)} is no JSON object")
    method, tokens = given.get("method"), given.get("num_speculative_tokens")
    counted = tokens if isinstance(tokens, int) and 0 < tokens < 1000 else 1
    return Speculation(method if isinstance(method, str) else "", counted)


def draft_layers(model: Architecture, user: UserArgs) -> int:
    """The model's layers for multi-token prediction that the engine loads."""
    found = speculation_of(user)
    if found is None or not found.predicts_itself or not model.predicting_bytes:
        return 0
    return max(1, model.predicting_layers)


def rows_per_sequence(user: UserArgs) -> int:
    """Rows of logits of a sequence in a step."""
    found = speculation_of(user)
    return 1 if found is None else 1 + found.tokens
