"""What the engine's steps cost, from a model that is corrected by what is observed.

    step = max(floor, prefill_token * prompt tokens) + kv_token * KV tokens + sequence * sequences + overhead     [s]

Its part that grows with the prompt and the rest get a factor each, fitted to the gaps between tokens by recursive least
squares that forgets. So the model need only have the right shape: without a calibrated one, defaults do until some
hundred steps were seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

FORGET = 0.995
"""What an observation counts for one step later: some 200 steps are remembered, which is seconds."""

OUTLIER = 4.0
"""A gap of more than so many times what is expected counts as so many times: a pause, not a step."""

GAP_WEIGHT = 0.02


@dataclass(frozen=True)
class StepModel:
    """Seconds. The defaults are about an 8B model on one current GPU: a shape to start from."""

    floor_s: float = 6e-3
    prefill_token_s: float = 50e-6
    kv_token_s: float = 50e-9
    sequence_s: float = 15e-6
    overhead_s: float = 0.5e-3


class StepEstimate:
    """The model with its two factors, and the mean gap between tokens."""

    def __init__(self, model: StepModel | None = None) -> None:
        self.model = model or StepModel()
        self.prefill_factor = 1.0
        self.decode_factor = 1.0
        self.gap_s = self.model.floor_s + self.model.overhead_s
        self.observed = 0
        # Covariance of the two factors: some doubt about the model, less than a hundred steps can dispel.
        self._p00, self._p01, self._p11 = 1.0, 0.0, 1.0

    @property
    def prefill_token_s(self) -> float:
        """Seconds that one more prompt token costs in a full step."""
        return self.model.prefill_token_s * self.prefill_factor

    def decode_s(self, kv_tokens: float, sequences: float) -> float:
        """Seconds of a step without prompts."""
        return self._decode_s(kv_tokens, sequences) * self.decode_factor

    def step_s(self, prefill_tokens: float, kv_tokens: float, sequences: float) -> float:
        """Seconds of a step."""
        prefill_s = self._prefill_s(prefill_tokens) * self.prefill_factor
        return prefill_s + self.decode_s(kv_tokens, sequences)

    def work_s(self, prompt_tokens: float, uncached_tokens: float, output_tokens: float) -> float:
        """Engine seconds of a whole request beside others: its prompt, and reading its KV cache at every token."""
        model = self.model
        context = prompt_tokens + output_tokens / 2
        decode_s = output_tokens * (model.sequence_s + model.kv_token_s * context)
        return self.prefill_token_s * uncached_tokens + self.decode_factor * decode_s

    def observe(self, gap_s: float, prefill_tokens: float, kv_tokens: float, sequences: float) -> None:
        """A step of these loads took `gap_s`."""
        x0, x1 = self._prefill_s(prefill_tokens), self._decode_s(kv_tokens, sequences)
        expected_s = self.prefill_factor * x0 + self.decode_factor * x1
        gap_s = min(gap_s, OUTLIER * max(expected_s, self.gap_s))
        self.gap_s += max(GAP_WEIGHT, 1.0 / (self.observed + 1)) * (gap_s - self.gap_s)
        self.observed += 1
        self._fit(x0 / expected_s, x1 / expected_s, gap_s / expected_s - 1.0)

    def _fit(self, x0: float, x1: float, error: float) -> None:
        g0, g1 = self._p00 * x0 + self._p01 * x1, self._p01 * x0 + self._p11 * x1
        scale = 1.0 / (FORGET + x0 * g0 + x1 * g1)
        self.prefill_factor = _within(self.prefill_factor + g0 * scale * error)
        self.decode_factor = _within(self.decode_factor + g1 * scale * error)
        # Bounded: without prompts for a while nothing is learnt of them, and doubt must not grow for ever.
        self._p00 = min((self._p00 - g0 * g0 * scale) / FORGET, 1.0)
        self._p11 = min((self._p11 - g1 * g1 * scale) / FORGET, 1.0)
        most = 0.99 * sqrt(self._p00 * self._p11)
        self._p01 = max(-most, min((self._p01 - g0 * g1 * scale) / FORGET, most))

    def _prefill_s(self, tokens: float) -> float:
        return max(0.0, self.model.prefill_token_s * tokens - self.model.floor_s)

    def _decode_s(self, kv_tokens: float, sequences: float) -> float:
        model = self.model
        return model.floor_s + model.overhead_s + model.kv_token_s * kv_tokens + model.sequence_s * sequences


def _within(factor: float) -> float:
    return min(max(factor, 0.02), 50.0)
