"""An estimate of the engine's step times: a model (`StepTime`) with two factors that are learned from measurements.

One factor applies to the part that grows with the prompt, the other to the rest. Both are fitted by least squares with
exponential forgetting. The model therefore needs only the right shape: without a calibrated or planned model, defaults
are good enough until some hundred steps have been measured.

The time to the first token of a prompt that has the engine to itself also contains time outside the steps: the API
server, the tokeniser and the network. This is a third unknown, a constant for each request. Prompts of one length
cannot separate it from the time for each token, and then count as the constant. Only prompts of different lengths, or
steps, change the factors.
"""

from __future__ import annotations

from typing import NamedTuple

from uellm.step_time import UNCORRECTED, StepFactors, StepTime

FORGET = 0.995
"""Factor by which an observation's weight falls with each further one: about 200 steps count, or some seconds."""

PRIOR_WEIGHT = 3.0
"""Weight of the previous factors, in observations. It keeps what recent steps do not measure."""

INITIAL_WEIGHT = 0.003
"""Weight of the initial model, in observations. A factor that no observation measures returns to where it started, by
about a third in 500 observations. A factor that is measured hardly moves."""

REQUEST_STEPS = 5.0
"""Unit of the constant for each request, in steps without prompts. The unit is large, so that a late first token is
attributed to a slow API server before it is attributed to slow prompts."""

MOST_REQUEST_SCALES = 50.0

LEAST_FACTOR, MOST_FACTOR = 0.02, 50.0
"""Bounds of the learned factors."""

SHORTEST_GAP_S = 1e-6
"""Shorter gaps are of the transport, not of a step; the mean gap is a divisor and must not vanish."""

OUTLIER = 4.0
"""A longer gap is cut to this many times the expected one: it was a pause, not a step."""

GAP_WEIGHT = 0.02
"""Least weight of an observation in the mean gap and the mean error; the first ones count alike."""
RECENT_WEIGHT = 0.15
MEASURED_WEIGHT = 0.005
"""Weight of a step in the means that are reported: about the last 200 steps count."""


class MeasuredSteps(NamedTuple):
    """The engine's steps beside what the estimate started from."""

    observed: int
    """Steps without prompts and with them, since the estimate started."""
    factors: StepFactors
    """The learned factors, on the model without any."""
    mean_s: float
    """Mean time of the last steps."""
    expected_s: float
    """Mean time of the same steps by the model and the factors that the estimate started from."""


DEFAULT_STEP_TIME = StepTime(
    floor_s=6e-3, per_prefill_token_s=50e-6, per_kv_token_s=50e-9, per_sequence_s=15e-6, overhead_s=0.5e-3
)
"""About an 8B model on one current GPU, used until steps are measured."""


class StepEstimate:
    """The step model with its learned factors, and the mean gap between tokens."""

    def __init__(self, model: StepTime | None = None, factors: StepFactors = UNCORRECTED) -> None:
        self.reset(model or DEFAULT_STEP_TIME, factors)

    def reset(self, model: StepTime, factors: StepFactors = UNCORRECTED) -> None:
        """Forget all observations and start from `model`, and from factors that were learned before."""
        self.model = model
        self.initial_factors = factors
        self._base_s = model.floor_s + model.overhead_s
        self.prefill_factor, self.decode_factor = factors
        self.gap_s = self._base_s * factors.decode
        self.recent_gap_s = self.gap_s
        """Mean of the last few gaps, for control."""
        self.error_share = 0.0
        """Mean relative error of the model against the observed times."""
        self.observed = 0
        self._gaps = 0
        self._request_scales = 0.0
        self._forget_means()
        self.forget_observations()

    def forget_observations(self) -> None:
        """Keep the factors, but forget the observations behind them, so that the next few can change them."""
        # Fading sums over the observations: products of the three parts with each other and with the observed time.
        self._a00 = self._a01 = self._a02 = self._a11 = self._a12 = self._a22 = 0.0
        self._b0 = self._b1 = self._b2 = 0.0

    def discard_recent_gaps(self, gap_s: float) -> None:
        """Discard recent gaps that were not the engine's. Its gap is now taken to be `gap_s`."""
        self.gap_s = self.recent_gap_s = max(gap_s, SHORTEST_GAP_S)
        self._forget_means()
        self.forget_observations()

    def _forget_means(self) -> None:
        self._measured, self._mean_s, self._expected_s = 0, 0.0, 0.0

    @property
    def measured(self) -> MeasuredSteps:
        """What was measured, beside what was expected."""
        factors = StepFactors(self.prefill_factor, self.decode_factor)
        return MeasuredSteps(self._measured, factors, self._mean_s, self._expected_s)

    @property
    def request_s(self) -> float:
        """Seconds before the first token that a request spends outside the engine's steps."""
        return self._request_scales * REQUEST_STEPS * self._base_s

    @property
    def prefill_token_s(self) -> float:
        """Seconds that one more prompt token costs in a full step."""
        return self.model.per_prefill_token_s * self.prefill_factor

    @property
    def current(self) -> StepTime:
        """The model with its factors, as a model without any.

        A prompt that is shorter than the floor costs nothing beside it, by either. Where the factor of prompts is the
        larger one, a part of the floor moves out of the overhead, which cannot be negative.
        """
        model, prefill, decode = self.model, self.prefill_factor, self.decode_factor
        overhead_s = decode * (model.floor_s + model.overhead_s) - prefill * model.floor_s
        return StepTime(
            floor_s=prefill * model.floor_s + min(overhead_s, 0.0),
            per_prefill_token_s=prefill * model.per_prefill_token_s,
            per_kv_token_s=decode * model.per_kv_token_s,
            per_sequence_s=decode * model.per_sequence_s,
            overhead_s=max(overhead_s, 0.0),
        )

    def decode_s(self, kv_tokens: float, sequences: float) -> float:
        """Seconds of a step without prompts."""
        return self._decode_s(kv_tokens, sequences) * self.decode_factor

    def step_s(self, prefill_tokens: float, kv_tokens: float, sequences: float) -> float:
        """Seconds of a step."""
        return self.both_s(prefill_tokens, kv_tokens, sequences)[0]

    def initial_step_s(self, prefill_tokens: float, kv_tokens: float, sequences: float) -> float:
        """Seconds of a step by the initial model."""
        return self.both_s(prefill_tokens, kv_tokens, sequences)[1]

    def both_s(self, prefill_tokens: float, kv_tokens: float, sequences: float) -> tuple[float, float]:
        """`step_s` and `initial_step_s`."""
        prefill_s, decode_s = self._prefill_s(prefill_tokens), self._decode_s(kv_tokens, sequences)
        initial = self.initial_factors
        now_s = prefill_s * self.prefill_factor + decode_s * self.decode_factor
        return now_s, prefill_s * initial.prefill + decode_s * initial.decode

    def answer_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Engine seconds that an answer adds to its steps, mostly to read its KV cache; by the initial model."""
        context = prompt_tokens + output_tokens / 2
        each_s = self.model.per_sequence_s + self.model.per_kv_token_s * context
        return output_tokens * each_s * self.initial_factors.decode

    def observe(self, gap_s: float, prefill_tokens: float, kv_tokens: float, sequences: float) -> None:
        """Learn from a step of these loads that took `gap_s`. A gap of no time was not a step."""
        if gap_s <= 0.0:
            return
        x0, x1 = self._prefill_s(prefill_tokens), self._decode_s(kv_tokens, sequences)
        expected_s = self.prefill_factor * x0 + self.decode_factor * x1
        longest_s = OUTLIER * (self.gap_s if self.gap_s > expected_s else expected_s)
        if gap_s > longest_s:
            gap_s = longest_s
        if gap_s < SHORTEST_GAP_S:
            gap_s = SHORTEST_GAP_S
        self._gaps += 1
        weight = 1.0 / self._gaps
        self.gap_s += (weight if weight > GAP_WEIGHT else GAP_WEIGHT) * (gap_s - self.gap_s)
        self.recent_gap_s += RECENT_WEIGHT * (gap_s - self.recent_gap_s)
        initial = self.initial_factors
        self._measured += 1
        weight = 1.0 / self._measured
        if weight < MEASURED_WEIGHT:
            weight = MEASURED_WEIGHT
        self._mean_s += weight * (gap_s - self._mean_s)
        self._expected_s += weight * (initial.prefill * x0 + initial.decode * x1 - self._expected_s)
        self._learn(gap_s, expected_s, x0, x1)

    def observe_alone(self, wait_s: float, prompt_tokens: float, steps: int) -> None:
        """Learn from a prompt that had the engine to itself for `steps` steps; its first token came after `wait_s`."""
        if wait_s <= 0.0:
            return
        x0, x1 = steps * self._prefill_s(prompt_tokens / steps), steps * self._decode_s(0.0, 1.0)
        expected_s = self.prefill_factor * x0 + self.decode_factor * x1 + self.request_s
        if wait_s > OUTLIER * expected_s:
            # Too long to be caused by the prompt's length; it may have been a pause.
            self._request_scales += expected_s / (REQUEST_STEPS * self._base_s)
            return
        self._learn(wait_s, expected_s, x0, x1, REQUEST_STEPS * self._base_s)

    def _learn(self, took_s: float, expected_s: float, x0: float, x1: float, x2: float = 0.0) -> None:
        """Learn from the seconds by the model of the three parts: prompts, the rest of the steps, the request."""
        self.observed += 1
        weight = 1.0 / self.observed
        error_share = abs(took_s - expected_s) / took_s
        self.error_share += (weight if weight > GAP_WEIGHT else GAP_WEIGHT) * (error_share - self.error_share)
        # Relative times: long steps do not count for more, and time outside the steps lowers the weight.
        unit_s = x0 + x1
        if x2:
            unit_s = max(unit_s, unit_s + self.request_s)
        x0, x1, x2, y = x0 / unit_s, x1 / unit_s, x2 / unit_s, took_s / unit_s
        # Least squares for y = prefill_factor * x0 + decode_factor * x1 + request_scales * x2.
        a00 = self._a00 = self._a00 * FORGET + x0 * x0
        a01 = self._a01 = self._a01 * FORGET + x0 * x1
        a02 = self._a02 = self._a02 * FORGET + x0 * x2
        a11 = self._a11 = self._a11 * FORGET + x1 * x1
        a12 = self._a12 = self._a12 * FORGET + x1 * x2
        a22 = self._a22 = self._a22 * FORGET + x2 * x2
        b0 = self._b0 = self._b0 * FORGET + x0 * y
        b1 = self._b1 = self._b1 * FORGET + x1 * y
        b2 = self._b2 = self._b2 * FORGET + x2 * y
        initial = self.initial_factors
        kept = PRIOR_WEIGHT if x2 else PRIOR_WEIGHT * (x0 * x0 + x1 * x1)
        prior = kept + INITIAL_WEIGHT
        a00, a11, a22 = a00 + prior, a11 + prior, a22 + prior
        b0 = b0 + kept * self.prefill_factor + INITIAL_WEIGHT * initial.prefill
        b1 = b1 + kept * self.decode_factor + INITIAL_WEIGHT * initial.decode
        b2 = b2 + kept * self._request_scales
        # The matrix is symmetric and positive definite: its cofactors, and Cramer's rule.
        c00, c01, c02 = a11 * a22 - a12 * a12, a02 * a12 - a01 * a22, a01 * a12 - a02 * a11
        c11, c12, c22 = a00 * a22 - a02 * a02, a01 * a02 - a00 * a12, a00 * a11 - a01 * a01
        determinant = a00 * c00 + a01 * c01 + a02 * c02
        self.prefill_factor = _within((c00 * b0 + c01 * b1 + c02 * b2) / determinant)
        self.decode_factor = _within((c01 * b0 + c11 * b1 + c12 * b2) / determinant)
        scales = (c02 * b0 + c12 * b1 + c22 * b2) / determinant
        if scales > MOST_REQUEST_SCALES:
            scales = MOST_REQUEST_SCALES
        self._request_scales = scales if scales > 0.0 else 0.0

    def _prefill_s(self, tokens: float) -> float:
        over_s = self.model.per_prefill_token_s * tokens - self.model.floor_s
        return over_s if over_s > 0.0 else 0.0

    def _decode_s(self, kv_tokens: float, sequences: float) -> float:
        model = self.model
        return self._base_s + model.per_kv_token_s * kv_tokens + model.per_sequence_s * sequences


def _within(factor: float) -> float:
    if factor < LEAST_FACTOR:
        return LEAST_FACTOR
    return factor if factor < MOST_FACTOR else MOST_FACTOR
