"""Chooses the answers of a busy client that are learned from."""

from __future__ import annotations

from collections.abc import Callable

LESSONS_PER_S = 100.0
"""Of one client on one route, about so many answers are learned from where more come; all where fewer come, and in the
first second of a busy time. A window of 1,024 such answers goes back for ten seconds."""

SLOT_S = 1.0
"""The rate of requests during such a time sets the share for the next one. So it is the same for the first and the last
of a short burst, whose order may depend on their lengths."""


class Lessons:
    """Those of one client on one route."""

    __slots__ = ("_begun_s", "_count", "_share")

    def __init__(self) -> None:
        self._begun_s = 0.0
        self._count = 0
        self._share = 1.0

    def choose(self, now_s: float, draw: Callable[[], float]) -> bool:
        """Whether the answer to a request that came now is learned from. `draw`: a random number from 0 to 1."""
        passed_s = now_s - self._begun_s
        if passed_s >= SLOT_S:
            most = LESSONS_PER_S * passed_s
            self._share = most / self._count if self._count > most else 1.0
            self._begun_s, self._count = now_s, 0
        self._count += 1
        return self._share == 1.0 or draw() < self._share
