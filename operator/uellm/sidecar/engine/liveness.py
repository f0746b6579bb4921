"""Whether an engine that says it is healthy moves at all. Pure; the caller passes the clock in.

vLLM answers /health with 200 while a worker hangs. So where requests are in it and its token counters stand still for
`STILL_S`, a canary is sent, a request for one token. An engine that answers it, or moves meanwhile, is well; one that
does neither for `CANARY_S` hangs.
"""

from __future__ import annotations

from enum import Enum

STILL_S = 30.0
"""Counters move with every step. One step takes seconds at most, save for the first ones of a shape."""

CANARY_S = 60.0
"""The canary waits behind the prompts that are being computed: a long one takes tens of seconds on slow engines."""


class Verdict(Enum):
    """What is to be done."""

    WELL = "well"
    SEND_CANARY = "send a canary"
    WAIT = "the canary is on its way"
    HANGS = "hangs"


class Liveness:
    """Follows the counters of one engine."""

    def __init__(self) -> None:
        self._progress: float | None = None
        self._still_since_s = 0.0
        self._canary_since_s: float | None = None

    def look(self, progress_tokens: float | None, *, busy: bool, now_s: float) -> Verdict:
        """Judge. `progress_tokens`: the counters, None where metrics did not come; `busy`: it has requests of ours."""
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
        """The canary came back; one that failed leaves the verdict to the time."""
        if answered:
            self._still_since_s, self._canary_since_s = now_s, None
