"""The engine's speed with its current requests, as it is planned with."""

from __future__ import annotations

from typing import NamedTuple

from uellm.sidecar.scheduling.estimate import StepEstimate

OPTIMISTIC_FACTOR = 2.0
"""Shedding assumes step times of at most this many times the initial model's."""


class Pace(NamedTuple):
    """The engine's speed at one moment."""

    rate: float
    """Prompt tokens a second while prompts wait, at the current number of decoding requests."""
    step_s: float
    """Seconds of a step that is full of prompt tokens."""
    gap_s: float
    """Recent mean of the seconds between two tokens of an answer."""
    prefill_token_s: float
    """Seconds for each further prompt token."""
    decode_factor: float
    """Measured over assumed time of a step without prompts."""
    optimistic_rate: float
    """As `rate`, but bounded by the initial model, so that a wrong estimate sheds no request."""
    optimistic_gap_s: float
    """As `gap_s`, bounded in the same way."""


def pace_of(step: StepEstimate, prompt_tokens: float, kv_tokens: float, decoding: int) -> Pace:
    """The speed of steps that compute so many prompt tokens beside so many decoding requests."""
    step_s, initial_s = step.both_s(prompt_tokens, kv_tokens, decoding)
    optimistic_s = OPTIMISTIC_FACTOR * initial_s
    return Pace(
        prompt_tokens / step_s,
        step_s,
        step.gap_s,
        step.prefill_token_s,
        step.decode_factor,
        prompt_tokens / (optimistic_s if optimistic_s < step_s else step_s),
        optimistic_s if optimistic_s < step.gap_s else step.gap_s,
    )
