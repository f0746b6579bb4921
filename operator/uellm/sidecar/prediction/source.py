"""What was learned of one source of requests, and how much of what it tells is still worth learning."""

from __future__ import annotations

from uellm.sidecar.prediction.window import Window

FORECASTERS = ("source", "bucket", "words")

LESSONS_PER_S = 50.0
"""Answers of one source that are learned from, at most. A full window of such answers reaches back for 20 s; one of all
the answers of a busy source would reach back for less than a second or two."""

MOST_AT_ONCE = 16.0
"""Answers that may be learned from in a moment, after a quiet time."""


class Source:
    """One source. `lengths`: logarithms; `residuals`: what the words' forecasts were short of."""

    __slots__ = ("_counted_s", "_room", "errors", "lengths", "residuals")

    def __init__(self) -> None:
        self.lengths, self.residuals = Window(), Window()
        self.errors = [0.0] * (len(FORECASTERS) + 1)
        """Of each forecaster, then the number of requests (losses.py)."""
        self._room = MOST_AT_ONCE
        self._counted_s = 0.0

    def has_room(self, now_s: float) -> bool:
        """Whether one more answer is to be learned from, which then counts. Which ones are is chance."""
        room = self._room + (now_s - self._counted_s) * LESSONS_PER_S
        self._counted_s = now_s
        if room > MOST_AT_ONCE:
            room = MOST_AT_ONCE
        if room < 1.0:
            self._room = room
            return False
        self._room = room - 1.0
        return True
