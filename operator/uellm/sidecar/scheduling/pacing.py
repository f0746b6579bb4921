"""The TPOT guard: prompts are fed to the engine no faster than lets running answers keep their pace.

Every prompt token in a step makes every running answer's next token later. A step without prompts leaves
`1 - decode / (0.85 * TPOT)` of the time for them. What the model gets a little wrong, additive increase and
multiplicative decrease on the measured gap between tokens puts right (Chiu and Jain, 1989).

What the model gets wholly wrong, only trying shows. While prompts wait for their pace, the measured gaps are clearly
below the target and the engine has next to no prompts, one is sent all the same, and the pace doubles. Each try costs
one prompt's time in one step, so that any pace that is too low ends within some steps; one that is too high ends with
the first gaps that are slow. Nor is the pace ever lower than a share of what the engine did lately within the target.
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

GROWTH = 2.0
MOST_GROWN = 128.0
STEEP_DECREASE = 0.7
"""Of the multiplier: its factor with each try, how far tries raise it, and how it falls while it is above what the
model's small errors account for."""

EASY_SHARE = 0.75
"""Of the TPOT target: with gaps below this, one more prompt is tried."""

SILENT_S, SILENT_TARGETS = 0.25, 5.0
"""Once no answer has had a token for so long, in seconds and in TPOT targets, what gaps told before does not count."""

CHECK_EVERY_S = 0.05
"""How often it is looked whether one can be tried, while nothing else happens."""

SHOWN_SHARE = 0.3
SHOWN_OVER_S = 1.0
SHOWN_KEPT = 0.9
"""The share of the rate that the engine has shown which pacing leaves at least, over how long that is measured, and
what is kept of it for each such time."""


class Pacing:
    """A bucket of prompt tokens that fills at the allowed rate and may be overdrawn by one request."""

    def __init__(self) -> None:
        self.restarted()

    def restarted(self) -> None:
        """Another engine process: what the last one showed holds no more."""
        self.multiplier = 1.0
        self.shown_rate = 0.0
        """Prompt tokens a second that the engine did lately while answers kept their target."""
        self._tokens = 0.0
        self._at_s = 0.0
        self._adjusted_s = 0.0
        self._marked_s = 0.0
        self._marked_tokens = 0

    def refill(self, view: EngineView, now_s: float) -> None:
        """Let time pass; `view.paced_rate` is set."""
        tpot_s = view.tightest_tpot_s
        if tpot_s is None or not view.decoding:
            view.paced_rate, self._tokens = inf, 0.0
        else:
            slow = view.step.recent_gap_s > SLOW_SHARE * tpot_s
            self._adjust(now_s, slow=slow)
            self._measure(view.filled_tokens, now_s, slow=slow)
            decode_s = view.step.decode_s(view.kv_tokens, view.decoding)
            share = max(LEAST_SHARE, 1.0 - decode_s / (TPOT_SHARE * tpot_s))
            rate = share * self.multiplier / view.step.prefill_token_s
            view.paced_rate = max(rate, SHOWN_SHARE * self.shown_rate)
            filled = self._tokens + max(0.0, now_s - self._at_s) * view.paced_rate
            self._tokens = min(filled, float(view.chunk_tokens))
            if not self.open and _easy(view, tpot_s, now_s):
                self._tokens = 0.0
                self.multiplier = min(GROWTH * self.multiplier, MOST_GROWN)
        self._at_s = now_s

    @property
    def open(self) -> bool:
        """Whether a prompt may be sent."""
        # A token of tolerance, or the alarm for the moment it opens could ring a rounding error too early, and again.
        return self._tokens > -1.0

    def spend(self, tokens: int) -> None:
        """A prompt is sent."""
        self._tokens -= tokens

    def opens_s(self, view: EngineView) -> float | None:
        """When it opens by time alone, or may be found open; None: it is open."""
        if self.open or view.paced_rate == inf:
            return None
        return self._at_s + min(-self._tokens / view.paced_rate, CHECK_EVERY_S)

    def _adjust(self, now_s: float, *, slow: bool) -> None:
        if abs(now_s - self._adjusted_s) < ADJUST_EVERY_S:
            return
        self._adjusted_s = now_s
        if slow:
            steep = self.multiplier > MOST_MULTIPLIER
            self.multiplier = max(self.multiplier * (STEEP_DECREASE if steep else DECREASE), LEAST_MULTIPLIER)
        elif self.multiplier < MOST_MULTIPLIER:
            self.multiplier = min(self.multiplier + INCREASE, MOST_MULTIPLIER)

    def _measure(self, filled_tokens: int, now_s: float, *, slow: bool) -> None:
        passed_s = abs(now_s - self._marked_s)
        if passed_s < SHOWN_OVER_S:
            return
        self.shown_rate *= SHOWN_KEPT ** (passed_s / SHOWN_OVER_S)
        if slow:
            self.shown_rate *= DECREASE
        else:
            self.shown_rate = max(self.shown_rate, (filled_tokens - self._marked_tokens) / passed_s)
        self._marked_s, self._marked_tokens = now_s, filled_tokens


def _easy(view: EngineView, tpot_s: float, now_s: float) -> bool:
    """Whether the running answers are so far ahead of their target that one more prompt costs nothing."""
    gap_s = view.step.recent_gap_s
    if view.silent_s(now_s) > max(SILENT_S, SILENT_TARGETS * tpot_s):
        # Nothing tells of the engine any more: slow clients, maybe. One prompt will.
        return not view.unfilled_tokens
    if view.debt_s > 0.0 or gap_s > EASY_SHARE * tpot_s:
        return False
    # By the model if what was learnt is slower: it may be what is wrong.
    token_s = min(view.step.prefill_token_s, view.step.model.prefill_token_s)
    return gap_s + token_s * view.unmeasured_tokens <= EASY_SHARE * tpot_s
