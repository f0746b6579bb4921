"""When a refused request will find room: what waits, over the rate at which requests are completed. Pure.

Clients that are refused at the same moment and told the same time come back at the same moment. So each is told a time
of its own: they stand in a line behind the queue, and come back in its order, at the rate at which room is made. The
line begins when half of the queue is gone: the first find room though the rate is only estimated, and the engine still
has work until they are there.
"""

from __future__ import annotations

import math

LEAST_S, MOST_S = 0.25, 55.0
"""OpenAI's and Anthropic's clients of some versions do as they are told only up to 60 s."""

UNKNOWN_S = (0.5, 4.0)
"""Where no rate was measured yet: the first that come back meet one."""

MEMORY_S = 20.0
"""Seconds with a queue after which what was measured counts 1/e."""

LEAST_COMPLETED = 3
QUEUE_SHARE = 0.5
SPREAD = 0.2


class Room:
    """The rate of one engine, and the line of those that were told to come back. Times are the caller's clock."""

    def __init__(self) -> None:
        self._known = 0
        self._completed = 0.0
        self._busy_s = 0.0
        self._seen_s = 0.0
        self._queued = False
        self._lines_s: dict[int, float] = {}
        """When the last of each line is to come back, by the priority of those in it."""

    @property
    def rate(self) -> float | None:
        """Requests completed a second while others waited; None: not known yet."""
        return self._completed / self._busy_s if self._known >= LEAST_COMPLETED and self._busy_s > 0.0 else None

    def look(self, queued: bool, now_s: float) -> None:
        """Whether requests wait from now on. Only the time in which some do tells what the engine can do."""
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        if self._queued and passed_s > 0.0:
            kept = math.exp(-passed_s / MEMORY_S)
            self._completed *= kept
            self._busy_s = self._busy_s * kept + passed_s
        self._queued = queued

    def completed(self, now_s: float) -> None:
        """A request left the engine."""
        if self._queued:
            self.look(True, now_s)
            self._completed += 1.0
            self._known += 1

    def retry_s(self, ahead: float, priority: int, now_s: float, chance: float) -> float:
        """When a request that is refused now shall come back, in seconds from now.

        `ahead`: waiting requests that go before it; `priority`: which line it joins; `chance`: from 0 to 1, drawn anew
        for each request.
        """
        self.look(self._queued, now_s)
        rate = self.rate
        if rate is None:
            least_s, most_s = UNKNOWN_S
            return least_s + (most_s - least_s) * chance
        last_s = self._lines_s.get(priority, 0.0)
        wait_s = max(last_s + 1.0 / rate, now_s + QUEUE_SHARE * ahead / rate) - now_s
        self._lines_s[priority] = now_s + min(wait_s, MOST_S)
        if wait_s > MOST_S:
            # More than can be served within the time that clients wait: they come back over the last half of it.
            return MOST_S * (1.0 - 0.5 * chance)
        return max(wait_s * (1.0 - SPREAD * chance), LEAST_S)
