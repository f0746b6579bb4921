"""When a refused request will find room: what waits, over the rate at which requests are completed. Pure.

Clients that are refused at the same moment and told the same time come back at the same moment. So each is told a time
of its own: they stand in a line behind the queue, and come back in its order, at the rate at which room is made. The
line begins when half of the queue is gone: the first find room though the rate is only estimated, and the engine still
has work until they are there.
"""

from __future__ import annotations

LEAST_S, MOST_S = 0.25, 55.0
"""OpenAI's and Anthropic's clients of some versions do as they are told only up to 60 s."""

UNKNOWN_S = (0.5, 4.0)
"""Where no rate was measured yet: the first that come back meet one."""

LEAST_COMPLETED, LEAST_MEMORY = 3, 16
"""Requests until a rate is known, and by how many it is told at least."""

QUEUE_SHARE = 0.5
SPREAD = 0.2
"""Of the wait, by which it is shortened at most; no further than the queue has room for those that come early."""


class RetryTimes:
    """The rate of one engine, and the line of those that were told to come back. Times are the caller's clock.

    The rate is that of Little's law: requests in the engine, over the mean time that one spends there. Unlike a count
    of completions it is right from the first of them on.
    """

    def __init__(self) -> None:
        self._completed = 0
        self._in_flight = 0.0
        self._took_s = 0.0
        self._last_s = 0.0
        self._waits = False
        self._lines_s: dict[int, float] = {}
        """When the last of each line is to come back, by the priority of those in it."""

    def set_waiting(self, waits: bool, now_s: float) -> None:
        """Whether requests wait from now on."""
        if waits and not self._waits:
            self._last_s = now_s
        self._waits = waits

    def record_completion(self, in_flight: int, took_s: float, now_s: float) -> None:
        """A request that was so long in the engine, as one of `in_flight`, left it.

        Where none waits that tells what is asked of the engine, not what it can do.
        """
        if not self._waits:
            return
        self._completed += 1
        weight = max(1.0 / self._completed, 1.0 / max(LEAST_MEMORY, 2 * in_flight))
        self._in_flight += weight * (in_flight - self._in_flight)
        self._took_s += weight * (took_s - self._took_s)
        self._last_s = now_s

    def rate(self, now_s: float) -> float | None:
        """Requests completed a second while others wait; None: not known yet. It falls while none is completed."""
        if self._completed < LEAST_COMPLETED:
            return None
        return self._in_flight / max(self._took_s, now_s - self._last_s, 1e-3)

    def retry_s(self, ahead: float, priority: int, now_s: float, chance: float) -> float:
        """When a request that is refused now shall come back, in seconds from now.

        `ahead`: waiting requests that go before it; `priority`: which line it joins; `chance`: from 0 to 1, drawn anew
        for each request.
        """
        rate = self.rate(now_s)
        if rate is None:
            least_s, most_s = UNKNOWN_S
            return least_s + (most_s - least_s) * chance
        last_s, half_s = self._lines_s.get(priority, 0.0), QUEUE_SHARE * ahead / rate
        wait_s = max(last_s + 1.0 / rate, now_s + half_s) - now_s
        self._lines_s[priority] = now_s + min(wait_s, MOST_S)
        if wait_s > MOST_S:
            # More than can be served within the time that clients wait: they come back over the last half of it.
            return MOST_S * (1.0 - 0.5 * chance)
        return max(wait_s - chance * min(SPREAD * wait_s, half_s + 1.0 / rate), LEAST_S)
