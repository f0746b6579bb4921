"""Requests that are sent and have not reached the engine, while it computes prompts alone.

Where the way through the API server takes long, the engine runs dry unless more prompts are on it. The engine reports
how many requests it has, so it is known how many are on the way. But where the API server is the bottleneck itself,
more of them only wait there, in an order that nobody can change. So what is allowed is tried: a little more now and
then, which is kept if the rate of prompts rises, and a little less, which is kept if it does not fall.
"""

from __future__ import annotations

WEIGHT = 0.5
"""Weight of a report in the mean of what is on the way."""

LEAST_GAIN, FALL, LEAST_KEPT = 1.05, 0.6, 0.97
"""The gain in the rate for which more is kept; how much less is tried, and what part of the rate must then be left."""

LEAST_FALL = 0.25
"""Less than so many steps is not tried."""

REST_REPORTS = 4
"""After a try that was not kept, so many reports pass before the next one."""


class Away:
    """Prompt tokens that may be on the way."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self._mean = 0.0
        self._before = self._rate_before = 0.0
        """Tokens and rate before the last try."""
        self._least = 0.0
        """The share of that rate for which the try is kept. 0: none goes on."""
        self._rest = 0
        self._falls = False
        """Whether the next try is of less."""

    def on_report(self, away_tokens: float, rate: float, step_tokens: int, *, waiting: bool) -> None:
        """Take a report: tokens that are on the way now, and prompt tokens a second since the last one.

        `step_tokens`: those of a full step. `waiting`: requests are queued here, so more could have been sent.
        """
        self._mean += WEIGHT * (away_tokens - self._mean)
        if not waiting:
            self.tokens, self._least = min(self.tokens, self._mean), 0.0
            return
        if self._least and rate < self._least * self._rate_before:
            self.tokens, self._rest, self._falls = self._before, REST_REPORTS, not self._falls
        self._least = 0.0
        if self._rest:
            self._rest -= 1
        else:
            self._try(rate, step_tokens)

    def _try(self, rate: float, step_tokens: int) -> None:
        self._before, self._rate_before = self.tokens, rate
        more = self._mean + step_tokens
        if (self._falls and self.tokens > LEAST_FALL * step_tokens) or more <= self.tokens:
            self.tokens, self._least, self._falls = FALL * self.tokens, LEAST_KEPT, True
        else:
            self.tokens, self._least, self._falls = more, LEAST_GAIN, False
