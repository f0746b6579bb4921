"""What the engine's steps cost, from a model that is corrected by what is observed.

    step = max(floor, prefill_token * prompt tokens) + kv_token * KV tokens + sequence * sequences + overhead     [s]

Its part that grows with the prompt and the rest get a factor each, fitted by least squares that forget. So the model
need only have the right shape: without a calibrated or a planned one, defaults do until some hundred steps were seen.

The time to the first token of a prompt that the engine had to itself contains what no step takes: the API server, the
tokeniser, the network. It is a third unknown, a constant for each request. Prompts of one length cannot tell it from
the time per token, and then count as the constant; only prompts of different lengths, or steps, change the factors.
"""

from __future__ import annotations

from uellm.step_time import StepTime

FORGET = 0.995
"""What an observation counts for one step later: some 200 steps are remembered, which is seconds."""

PRIOR_WEIGHT = 3.0
"""Observations that the factors of before count for, so that what the steps of late do not tell stays as it was."""

WAY_BACK = 0.003
"""Weight, in observations, of the model as it was given. What no observation tells of returns to it, by about a third
in 500 of them; what they do tell of is not moved."""

REQUEST_STEPS = 5.0
"""Scale of the constant per request, in steps without prompts: the constant is some of these, where a factor is near 1.
So a late first token is taken for a slow API server before it is taken for slow prompts."""

MOST_REQUEST_SCALES = 50.0

OUTLIER = 4.0
"""A gap of more than so many times what is expected counts as so many times: a pause, not a step."""

GAP_WEIGHT = 0.02
RECENT_WEIGHT = 0.15


DEFAULT_STEP_TIME = StepTime(
    floor_s=6e-3, per_prefill_token_s=50e-6, per_kv_token_s=50e-9, per_sequence_s=15e-6, overhead_s=0.5e-3
)
"""About an 8B model on one current GPU. It gives the model its shape until steps are measured."""


class StepEstimate:
    """The model with its two factors, and the mean gap between tokens."""

    def __init__(self, model: StepTime | None = None) -> None:
        self.reset(model or DEFAULT_STEP_TIME)

    def reset(self, model: StepTime) -> None:
        """Forget what was observed; `model` is right until more is."""
        self.model = model
        self.prefill_factor = 1.0
        self.decode_factor = 1.0
        self.gap_s = self._base_s
        self.recent_gap_s = self.gap_s
        """The mean of the last few: what can be steered by."""
        self.error_share = 0.0
        """Mean of what the model was wrong by, over what was observed."""
        self.observed = 0
        self._gaps = 0
        self._request_scales = 0.0
        self.forget_observations()

    def forget_observations(self) -> None:
        """Keep the factors and forget what they rest on: the next few observations may change them."""
        # Sums over the observations, fading: of the three parts' products with each other and with what was observed.
        self._a00 = self._a01 = self._a02 = self._a11 = self._a12 = self._a22 = 0.0
        self._b0 = self._b1 = self._b2 = 0.0

    def discard_recent_gaps(self, gap_s: float) -> None:
        """What gaps told of late was no matter of the engine, whose gaps are now `gap_s`."""
        self.gap_s = self.recent_gap_s = gap_s
        self.forget_observations()

    @property
    def _base_s(self) -> float:
        return self.model.floor_s + self.model.overhead_s

    @property
    def request_s(self) -> float:
        """Seconds that a request spends on its way to its first token outside of the engine's steps."""
        return self._request_scales * REQUEST_STEPS * self._base_s

    @property
    def prefill_token_s(self) -> float:
        """Seconds that one more prompt token costs in a full step."""
        return self.model.per_prefill_token_s * self.prefill_factor

    def decode_s(self, kv_tokens: float, sequences: float) -> float:
        """Seconds of a step without prompts."""
        return self._decode_s(kv_tokens, sequences) * self.decode_factor

    def step_s(self, prefill_tokens: float, kv_tokens: float, sequences: float) -> float:
        """Seconds of a step."""
        prefill_s = self._prefill_s(prefill_tokens) * self.prefill_factor
        return prefill_s + self.decode_s(kv_tokens, sequences)

    def initial_step_s(self, prefill_tokens: float, kv_tokens: float, sequences: float) -> float:
        """Seconds of a step by the model as it was given."""
        return self._prefill_s(prefill_tokens) + self._decode_s(kv_tokens, sequences)

    def answer_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Engine seconds of an answer beside others, for reading its KV cache at every token; by the model as it is."""
        context = prompt_tokens + output_tokens / 2
        return output_tokens * (self.model.per_sequence_s + self.model.per_kv_token_s * context)

    def observe(self, gap_s: float, prefill_tokens: float, kv_tokens: float, sequences: float) -> None:
        """A step of these loads took `gap_s`; what took no time was no step."""
        if gap_s <= 0.0:
            return
        x0, x1 = self._prefill_s(prefill_tokens), self._decode_s(kv_tokens, sequences)
        expected_s = self.prefill_factor * x0 + self.decode_factor * x1
        gap_s = min(gap_s, OUTLIER * max(expected_s, self.gap_s))
        self._gaps += 1
        self.gap_s += max(GAP_WEIGHT, 1.0 / self._gaps) * (gap_s - self.gap_s)
        self.recent_gap_s += RECENT_WEIGHT * (gap_s - self.recent_gap_s)
        self._learn(gap_s, expected_s, (x0, x1, 0.0))

    def observe_alone(self, wait_s: float, prompt_tokens: float, steps: int) -> None:
        """A prompt that the engine had to itself, in so many steps, had its first token `wait_s` after it was sent."""
        if wait_s <= 0.0:
            return
        x0, x1 = steps * self._prefill_s(prompt_tokens / steps), steps * self._decode_s(0.0, 1.0)
        expected_s = self.prefill_factor * x0 + self.decode_factor * x1 + self.request_s
        if wait_s > OUTLIER * expected_s:
            # So far off that it was no matter of the prompt's length, and may have been a pause.
            self._request_scales += expected_s / (REQUEST_STEPS * self._base_s)
            return
        self._learn(wait_s, expected_s, (x0, x1, REQUEST_STEPS * self._base_s))

    def _learn(self, took_s: float, expected_s: float, parts_s: tuple[float, float, float]) -> None:
        self.observed += 1
        weight = max(GAP_WEIGHT, 1.0 / self.observed)
        self.error_share += weight * (abs(took_s - expected_s) / took_s - self.error_share)
        x0, x1, x2 = parts_s
        # Long steps do not count for more than short ones, and what mostly passed outside of a step tells little of it.
        unit_s = max(x0 + x1, x0 + x1 + self.request_s if x2 else 0.0)
        self._fit(x0 / unit_s, x1 / unit_s, x2 / unit_s, took_s / unit_s)

    def _fit(self, x0: float, x1: float, x2: float, y: float) -> None:
        """Least squares for `y = prefill_factor * x0 + decode_factor * x1 + request_scales * x2`."""
        self._fade()
        self._a00 += x0 * x0
        self._a01 += x0 * x1
        self._a02 += x0 * x2
        self._a11 += x1 * x1
        self._a12 += x1 * x2
        self._a22 += x2 * x2
        self._b0 += x0 * y
        self._b1 += x1 * y
        self._b2 += x2 * y
        kept = PRIOR_WEIGHT * (1.0 if x2 else x0 * x0 + x1 * x1)
        prior = kept + WAY_BACK
        a00, a11, a22 = self._a00 + prior, self._a11 + prior, self._a22 + prior
        a01, a02, a12 = self._a01, self._a02, self._a12
        b0 = self._b0 + kept * self.prefill_factor + WAY_BACK
        b1 = self._b1 + kept * self.decode_factor + WAY_BACK
        b2 = self._b2 + kept * self._request_scales
        # The matrix is symmetric and positive definite: its cofactors, and Cramer's rule.
        c00, c01, c02 = a11 * a22 - a12 * a12, a02 * a12 - a01 * a22, a01 * a12 - a02 * a11
        c11, c12, c22 = a00 * a22 - a02 * a02, a01 * a02 - a00 * a12, a00 * a11 - a01 * a01
        determinant = a00 * c00 + a01 * c01 + a02 * c02
        self.prefill_factor = _within((c00 * b0 + c01 * b1 + c02 * b2) / determinant)
        self.decode_factor = _within((c01 * b0 + c11 * b1 + c12 * b2) / determinant)
        scales = (c02 * b0 + c12 * b1 + c22 * b2) / determinant
        self._request_scales = min(max(scales, 0.0), MOST_REQUEST_SCALES)

    def _fade(self) -> None:
        self._a00 *= FORGET
        self._a01 *= FORGET
        self._a02 *= FORGET
        self._a11 *= FORGET
        self._a12 *= FORGET
        self._a22 *= FORGET
        self._b0 *= FORGET
        self._b1 *= FORGET
        self._b2 *= FORGET

    def _prefill_s(self, tokens: float) -> float:
        return max(0.0, self.model.per_prefill_token_s * tokens - self.model.floor_s)

    def _decode_s(self, kv_tokens: float, sequences: float) -> float:
        model = self.model
        return model.floor_s + model.overhead_s + model.per_kv_token_s * kv_tokens + model.per_sequence_s * sequences


def _within(factor: float) -> float:
    return min(max(factor, 0.02), 50.0)
