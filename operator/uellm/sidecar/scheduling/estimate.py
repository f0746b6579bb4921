"""What the engine's steps cost, from a model that is corrected by what is observed.

    step = max(floor, prefill_token * prompt tokens) + kv_token * KV tokens + sequence * sequences + overhead     [s]

Its part that grows with the prompt and the rest get a factor each, fitted to the gaps between tokens by least squares
that forget. So the model need only have the right shape: without a calibrated or a planned one, defaults do until
some hundred steps were seen.
"""

from __future__ import annotations

from dataclasses import dataclass

FORGET = 0.995
"""What an observation counts for one step later: some 200 steps are remembered, which is seconds."""

PRIOR_WEIGHT = 3.0
"""Observations that the factors of before count for, so that what the steps of late do not tell stays as it was."""

OUTLIER = 4.0
"""A gap of more than so many times what is expected counts as so many times: a pause, not a step."""

GAP_WEIGHT = 0.02
RECENT_WEIGHT = 0.15


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
        self.begin(model or StepModel())

    def begin(self, model: StepModel) -> None:
        """Forget what was observed; `model` is right until more is."""
        self.model = model
        self.prefill_factor = 1.0
        self.decode_factor = 1.0
        self.gap_s = self.model.floor_s + self.model.overhead_s
        self.recent_gap_s = self.gap_s
        """The mean of the last few: what can be steered by."""
        self.error_share = 0.0
        """Mean of what the model was wrong by, over what was observed."""
        self.observed = 0
        # Sums over the observations, fading: of the two parts' products with each other and with what was observed.
        self._a00 = self._a01 = self._a11 = self._b0 = self._b1 = 0.0

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

    def answer_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Engine seconds of an answer beside others, for reading its KV cache at every token; by the model as it is."""
        context = prompt_tokens + output_tokens / 2
        return output_tokens * (self.model.sequence_s + self.model.kv_token_s * context)

    def observe(self, gap_s: float, prefill_tokens: float, kv_tokens: float, sequences: float) -> None:
        """A step of these loads took `gap_s`; what took no time was no step."""
        if gap_s <= 0.0:
            return
        x0, x1 = self._prefill_s(prefill_tokens), self._decode_s(kv_tokens, sequences)
        expected_s = self.prefill_factor * x0 + self.decode_factor * x1
        gap_s = min(gap_s, OUTLIER * max(expected_s, self.gap_s))
        weight = max(GAP_WEIGHT, 1.0 / (self.observed + 1))
        self.gap_s += weight * (gap_s - self.gap_s)
        self.error_share += weight * (abs(gap_s - expected_s) / gap_s - self.error_share)
        self.recent_gap_s += RECENT_WEIGHT * (gap_s - self.recent_gap_s)
        self.observed += 1
        # Long steps do not count for more than short ones.
        unit_s = x0 + x1
        self._fit(x0 / unit_s, x1 / unit_s, gap_s / unit_s)

    def _fit(self, x0: float, x1: float, y: float) -> None:
        """Least squares for `y = prefill_factor * x0 + decode_factor * x1`."""
        self._a00 = FORGET * self._a00 + x0 * x0
        self._a01 = FORGET * self._a01 + x0 * x1
        self._a11 = FORGET * self._a11 + x1 * x1
        self._b0 = FORGET * self._b0 + x0 * y
        self._b1 = FORGET * self._b1 + x1 * y
        scale = PRIOR_WEIGHT * max(x0 * x0 + x1 * x1, 1e-12)
        a00, a11 = self._a00 + scale, self._a11 + scale
        b0, b1 = self._b0 + scale * self.prefill_factor, self._b1 + scale * self.decode_factor
        determinant = a00 * a11 - self._a01 * self._a01
        self.prefill_factor = _within((b0 * a11 - b1 * self._a01) / determinant)
        self.decode_factor = _within((b1 * a00 - b0 * self._a01) / determinant)

    def _prefill_s(self, tokens: float) -> float:
        return max(0.0, self.model.prefill_token_s * tokens - self.model.floor_s)

    def _decode_s(self, kv_tokens: float, sequences: float) -> float:
        model = self.model
        return model.floor_s + model.overhead_s + model.kv_token_s * kv_tokens + model.sequence_s * sequences


def _within(factor: float) -> float:
    return min(max(factor, 0.02), 50.0)
