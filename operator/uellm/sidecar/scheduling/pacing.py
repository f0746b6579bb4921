"""The TPOT guard: prompts are fed to the engine no faster than lets running answers keep their pace.

Every prompt token in a step makes every running answer's next token later. A step without prompts leaves
`1 - decode / (0.85 * TPOT)` of the time for them. What the model gets wrong, additive increase and multiplicative
decrease on the measured gap between tokens puts right (Chiu and Jain, 1989).
"""

from __future__ import annotations

from math import inf

from uellm.sidecar.scheduling.engineview import EngineView

TPOT_SHARE = 0.85
LEAST_SHARE = 0.05
"""Of the time, for prompts: with none, nothing would ever begin."""

DECREASE = 0.93
INCREASE = 0.01
ADJUST_EVERY_S = 0.25
SLOW_SHARE = 0.95
"""Of the TPOT target: gaps above this slow the prompts down."""

LEAST_MULTIPLIER, MOST_MULTIPLIER = 0.3, 1.5


class Pacing:
    """A bucket of prompt tokens that fills at the allowed rate and may be overdrawn by one request."""

    def __init__(self) -> None:
        self.multiplier = 1.0
        self._tokens = 0.0
        self._at_s = 0.0
        self._adjusted_s = 0.0

    def refill(self, view: EngineView, now_s: float) -> None:
        """Let time pass; `view.paced_rate` is set."""
        tpot_s = view.tightest_tpot_s
        if tpot_s is None:
            view.paced_rate, self._tokens = inf, 0.0
        else:
            self._adjust(view.step.recent_gap_s, tpot_s, now_s)
            decode_s = view.step.decode_s(view.kv_tokens, view.decoding)
            share = max(LEAST_SHARE, 1.0 - decode_s / (TPOT_SHARE * tpot_s))
            view.paced_rate = share * self.multiplier / view.step.prefill_token_s
            filled = self._tokens + max(0.0, now_s - self._at_s) * view.paced_rate
            self._tokens = min(filled, float(view.chunk_tokens))
        self._at_s = max(now_s, self._at_s)

    @property
    def open(self) -> bool:
        """Whether a prompt may be sent."""
        # A token of tolerance, or the alarm for the moment it opens could ring a rounding error too early, and again.
        return self._tokens > -1.0

    def spend(self, tokens: int) -> None:
        """A prompt is sent."""
        self._tokens -= tokens

    def opens_s(self, view: EngineView) -> float | None:
        """When it opens by time alone; None: it is open."""
        return None if self.open or view.paced_rate == inf else self._at_s - self._tokens / view.paced_rate

    def _adjust(self, gap_s: float, tpot_s: float, now_s: float) -> None:
        if now_s - self._adjusted_s < ADJUST_EVERY_S:
            return
        self._adjusted_s = now_s
        slow = gap_s > SLOW_SHARE * tpot_s
        multiplier = self.multiplier * DECREASE if slow else self.multiplier + INCREASE
        self.multiplier = min(max(multiplier, LEAST_MULTIPLIER), MOST_MULTIPLIER)
