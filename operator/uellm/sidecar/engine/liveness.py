"""Whether an engine that reports itself healthy makes progress. Pure: the caller passes the time in.

vLLM answers /health with 200 while a worker hangs. If the engine has requests and its metrics do not move for
`STILL_S`, a canary is sent: the smallest request of its task (canary.py). If it is answered or the metrics move, the
engine is well; if neither happens within the canary's patience, it hangs.

The metrics are the token counters and the use of the KV cache. A prompt's tokens are counted only with its first output
token, but its use of the cache grows with every step.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum

STILL_S = 30.0
"""A step takes seconds at most, except the first ones of a new shape."""

CANARY_S = 60.0
"""The least patience with a canary, which waits behind the prompts in progress."""

PREFILL_MARGIN = 4.0
MOST_CANARY_S = 900.0
"""The patience is also this many times the time that the step model gives for these prompts, within this bound. It
matters for models whose use of the cache does not grow with the prompt."""


class Verdict(Enum):
    """What the caller should do."""

    WELL = "well"
    SEND_CANARY = "send a canary"
    WAIT = "the canary is on its way"
    HANGS = "hangs"


class Liveness:
    """Follows the metrics of one engine."""

    def __init__(self) -> None:
        self.patience_s = CANARY_S
        """With the latest canary."""
        self._progress: Hashable | None = None
        self._still_since_s = 0.0
        self._canary_since_s: float | None = None

    def look(self, progress: Hashable | None, *, busy: bool, now_s: float, prefill_s: float = 0.0) -> Verdict:
        """Judge the engine.

        `progress`: its metrics that move while it computes, None if they could not be read; `busy`: it has requests of
        ours, whose prompts take it about `prefill_s`.
        """
        moved = progress is not None and progress != self._progress
        if moved or not busy:
            self._progress = progress if progress is not None else self._progress
            self._still_since_s, self._canary_since_s = now_s, None
            return Verdict.WELL
        if self._canary_since_s is not None:
            return Verdict.HANGS if now_s - self._canary_since_s >= self.patience_s else Verdict.WAIT
        if now_s - self._still_since_s < STILL_S:
            return Verdict.WELL
        self._canary_since_s = now_s
        self.patience_s = max(CANARY_S, min(PREFILL_MARGIN * prefill_s, MOST_CANARY_S))
        return Verdict.SEND_CANARY

    def on_canary(self, *, answered: bool, now_s: float) -> None:
        """The canary ended. One that failed changes nothing: the time decides."""
        if answered:
            self._still_since_s, self._canary_since_s = now_s, None
