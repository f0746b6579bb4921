"""Whether an engine that reports itself healthy makes progress. Pure: the caller passes the time in.

vLLM answers /health with 200 while a worker hangs. If the engine has requests and its token counters do not move for
`STILL_S`, a canary is sent: the smallest request of its task (canary.py). If it is answered or the counters move, the
engine is well; if neither happens within `CANARY_S`, it hangs.
"""

from __future__ import annotations

from enum import Enum

STILL_S = 30.0
"""The counters move with every step. A step takes seconds at most, except the first ones of a new shape."""

CANARY_S = 60.0
"""The canary waits behind prompts in progress: a long one takes tens of seconds on a slow engine."""


class Verdict(Enum):
    """What the caller should do."""

    WELL = "well"
    SEND_CANARY = "send a canary"
    WAIT = "the canary is on its way"
    HANGS = "hangs"


class Liveness:
    """Follows the token counters of one engine."""

    def __init__(self) -> None:
        self._progress: float | None = None
        self._still_since_s = 0.0
        self._canary_since_s: float | None = None

    def look(self, progress_tokens: float | None, *, busy: bool, now_s: float) -> Verdict:
        """Judge the engine.

        `progress_tokens`: sum of its token counters, None if its metrics could not be read; `busy`: it has requests
        of ours.
        """
        moved = progress_tokens is not None and progress_tokens != self._progress
        if moved or not busy:
            self._progress = progress_tokens if progress_tokens is not None else self._progress
            self._still_since_s, self._canary_since_s = now_s, None
            return Verdict.WELL
        if self._canary_since_s is not None:
            return Verdict.HANGS if now_s - self._canary_since_s >= CANARY_S else Verdict.WAIT
        if now_s - self._still_since_s < STILL_S:
            return Verdict.WELL
        self._canary_since_s = now_s
        return Verdict.SEND_CANARY

    def on_canary(self, *, answered: bool, now_s: float) -> None:
        """The canary ended. One that failed changes nothing: the time decides."""
        if answered:
            self._still_since_s, self._canary_since_s = now_s, None
