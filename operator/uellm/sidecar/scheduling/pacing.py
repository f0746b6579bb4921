"""The TPOT guard limits the rate of prompts, so that running answers keep their target time for each token.

Every prompt token in a step delays the next token of every running answer. Prompts may therefore use the share
`1 - decode / (0.85 * TPOT)` of the time, where `decode` is the time of a step without prompts. Divided by the time for
each prompt token, that share is a rate. A token bucket enforces the rate.

Three corrections are needed because the estimate of the engine's speed can be wrong:

- Small errors: additive increase and multiplicative decrease of the rate, by the measured gap between tokens (Chiu
  and Jain, 1989).
- Large errors: a rate that is far too low shows only when more is tried. While the bucket is empty, one prompt is sent
  anyway and the rate doubles, provided that gaps are clearly below the target and the engine has few prompts. A try
  costs the time of one prompt in one step, so a rate that is too low is corrected within a few steps. A rate that is
  too high is corrected by the first slow gaps.
- A lower bound: the rate never falls below a share of what the engine has lately achieved within the target.
"""

from __future__ import annotations

from math import inf

from uellm.sidecar.scheduling.engineview import EngineView

TPOT_SHARE = 0.85
"""Share of the TPOT target that a step may take. The rest is a margin."""

LEAST_SHARE = 0.05
"""Least share of the time for prompts. Without it no request would ever start."""

DECREASE = 0.93
INCREASE = 0.01
ADJUST_EVERY_S = 0.25
SLOW_SHARE = 0.95
"""Share of the TPOT target above which a gap reduces the rate."""

LEAST_MULTIPLIER, MOST_MULTIPLIER = 0.3, 1.5

GROWTH = 2.0
MOST_GROWN = 128.0
STEEP_DECREASE = 0.7
"""The multiplier's factor for each try, the bound for tries, and the decrease while it is above `MOST_MULTIPLIER`."""

HEADROOM_SHARE = 0.75
"""Share of the TPOT target below which gaps allow one more prompt."""

SILENT_S, SILENT_TARGETS = 0.25, 5.0
"""Measured gaps are ignored once no answer has had a token for this long, in seconds and in TPOT targets."""

CHECK_EVERY_S = 0.05
"""Interval of the checks whether a prompt can be tried, while nothing else happens."""

SHOWN_SHARE = 0.3
SHOWN_OVER_S = 1.0
SHOWN_KEPT = 0.9
"""The lower bound as a share of the rate that the engine achieved, the interval over which that rate is measured, and
the factor by which it fades in each interval."""


class Pacing:
    """A token bucket for prompts. It fills at the allowed rate, and one request may overdraw it."""

    def __init__(self) -> None:
        self.on_restart()

    def on_restart(self) -> None:
        """Forget what the previous engine process achieved."""
        self.multiplier = 1.0
        self.shown_rate = 0.0
        """Prompt tokens a second that the engine lately computed while answers kept their target."""
        self._tokens = 0.0
        self._free = False
        """Whether no answer with a TPOT target ran when the bucket was last filled."""
        self._at_s = 0.0
        self._adjusted_s = 0.0
        self._marked_s = 0.0
        self._marked_tokens = 0

    def refill(self, view: EngineView, now_s: float) -> None:
        """Fill the bucket for the time that has passed, and set `view.paced_rate`."""
        tpot_s = view.tightest_tpot_s
        if tpot_s is None or not view.shows_gaps:
            view.paced_rate = inf
            # Nothing that runs can be delayed. One step's prompts at a time: the first token may come at any moment.
            self._tokens, self._free = inf if tpot_s is None else float(view.chunk_tokens), True
        else:
            if self._free:
                self._tokens, self._free = 0.0, False
            slow = view.step.recent_gap_s > SLOW_SHARE * tpot_s
            self._adjust(now_s, slow=slow)
            self._measure(view.filled_tokens, now_s, slow=slow)
            decode_s = view.step.decode_s(view.kv_tokens, view.decoding)
            share = max(LEAST_SHARE, 1.0 - decode_s / (TPOT_SHARE * tpot_s))
            rate = share * self.multiplier / view.step.prefill_token_s
            view.paced_rate = max(rate, SHOWN_SHARE * self.shown_rate)
            filled = self._tokens + max(0.0, now_s - self._at_s) * view.paced_rate
            self._tokens = min(filled, float(view.chunk_tokens))
            if not self.open and _has_headroom(view, tpot_s, now_s):
                self._tokens = 0.0
                self.multiplier = min(GROWTH * self.multiplier, MOST_GROWN)
        self._at_s = now_s

    @property
    def open(self) -> bool:
        """Whether a prompt may be sent."""
        # One token of tolerance: a rounding error could otherwise wake the scheduler too early, again and again.
        return self._tokens > -1.0

    def spend(self, tokens: int) -> None:
        """Take the tokens of a prompt that is sent."""
        self._tokens -= tokens

    def opens_s(self, view: EngineView) -> float | None:
        """When time alone may open the bucket. None: it is open."""
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


def _has_headroom(view: EngineView, tpot_s: float, now_s: float) -> bool:
    """Whether running answers are far enough ahead of their target to allow one more prompt."""
    gap_s = view.step.recent_gap_s
    if view.silent_s(now_s) > max(SILENT_S, SILENT_TARGETS * tpot_s):
        # No answer shows the engine's speed any more, perhaps because clients are slow. One prompt will show it.
        return not view.unfilled_tokens
    if view.overrun.seconds > 0.0 or gap_s > HEADROOM_SHARE * tpot_s:
        return False
    # Use the initial model if the learned time is slower: the learned one may be wrong.
    token_s = min(view.step.prefill_token_s, view.step.model.per_prefill_token_s)
    return gap_s + token_s * view.unmeasured_tokens <= HEADROOM_SHARE * tpot_s
