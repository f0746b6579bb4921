"""How long one step of an engine takes.

    step = max(floor, perPrefillToken * prefill tokens) + perKvToken * KV tokens + perSequence * sequences + overhead

A step reads every weight once, which is the floor, and computes with them for every token of a prompt; the larger of
the two counts. It then reads the KV cache of its sequences, and takes a little time for each sequence (sampling) and
for itself (launching). Decoded tokens add no prefill time: the weights are read anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from uellm.errors import BadInput

STEP_FORMULA = "max(floor, perPrefillToken*prefillTokens) + perKvToken*kvTokens + perSequence*sequences + overhead"
STEP_FIELDS = ("floor", "perPrefillToken", "perKvToken", "perSequence", "overhead")
GRADES = 24
"""Values in a decade of a rounded figure: it is at most 5 % off."""


LEAST_FACTOR, MOST_FACTOR = 0.1, 10.0
"""Bounds of the factors: beyond them something other than the rates is wrong."""


LONGEST_S = 1e3
"""No part of a step takes longer. Sums of larger numbers could become infinite."""


class StepFactors(NamedTuple):
    """Factors on the two parts of a step's time."""

    prefill: float = 1.0
    """On what the tokens of prompts add to a step."""
    decode: float = 1.0
    """On the rest."""

    def bounded(self) -> StepFactors:
        """Within the bounds."""
        return StepFactors(*(min(max(factor, LEAST_FACTOR), MOST_FACTOR) for factor in self))


UNCORRECTED = StepFactors()


@dataclass(frozen=True, slots=True)
class StepTime:
    """The five figures of the formula, in seconds; none is negative."""

    floor_s: float
    per_prefill_token_s: float
    per_kv_token_s: float
    per_sequence_s: float
    overhead_s: float
    prompt_s: float = 0.0
    """What a step with tokens of a prompt takes besides. The planner alone has it; see `folded`."""

    def step_s(self, prefill_tokens: float, kv_tokens: float, sequences: float) -> float:
        """Seconds of a step.

        `prefill_tokens` of prompts are computed, `kv_tokens` are held by all sequences in it, `sequences` are in it.
        """
        return (
            max(self.floor_s, self.per_prefill_token_s * prefill_tokens)
            + self.per_kv_token_s * kv_tokens
            + self.per_sequence_s * sequences
            + self.overhead_s
            + (self.prompt_s if prefill_tokens > 0 else 0.0)
        )

    @property
    def floor_tokens(self) -> float:
        """Prefill tokens that cost no more than reading the weights; a smaller chunk wastes the difference."""
        return self.floor_s / self.per_prefill_token_s if self.per_prefill_token_s > 0 else math.inf

    def folded(self, prefill_tokens: float) -> StepTime:
        """The five figures alone: `prompt_s` spread over this number of prompt tokens."""
        if not self.prompt_s or prefill_tokens <= 0:
            return self
        prompts_s = max(self.floor_s, self.per_prefill_token_s * prefill_tokens) + self.prompt_s
        return replace(self, per_prefill_token_s=prompts_s / prefill_tokens, prompt_s=0.0)

    def rounded(self) -> StepTime:
        """Each figure as the nearest of GRADES a decade: equal devices, measured again, mostly give the same."""
        figures = (self.floor_s, self.per_prefill_token_s, self.per_kv_token_s, self.per_sequence_s, self.overhead_s)
        return StepTime(*(graded(figure) for figure in figures))

    def to_dict(self) -> dict[str, float]:
        """`stepSeconds` of the engine's file."""
        values = (self.floor_s, self.per_prefill_token_s, self.per_kv_token_s, self.per_sequence_s, self.overhead_s)
        return dict(zip(STEP_FIELDS, values, strict=True))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "stepSeconds") -> StepTime:
        """The inverse of `to_dict`. Raises BadInput."""
        values = [_number(data, name, where) for name in STEP_FIELDS]
        if not any(values):
            raise BadInput(where, "every time is 0: a step takes some time")
        return cls(*values)

    @classmethod
    def if_sane(cls, value: Any) -> StepTime | None:
        """From a document that comes out of a pod; None for anything that no engine's step is like."""
        try:
            found = cls.from_dict(value)
        except (BadInput, AttributeError, OverflowError):
            return None
        longest_s = max(found.floor_s, found.per_prefill_token_s, found.per_kv_token_s, found.per_sequence_s)
        return found if max(longest_s, found.overhead_s) <= LONGEST_S else None


def graded(value: float) -> float:
    """The nearest of GRADES values in a decade."""
    if value <= 0:
        return 0.0
    return float(f"{10 ** (round(GRADES * math.log10(value)) / GRADES):.2e}")


def _number(data: Mapping[str, Any], name: str, where: str) -> float:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise BadInput(f"{where}.{name}", f"must be a number of seconds, 0 or more, and is {value!r}")
    return float(value)
