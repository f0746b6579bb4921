"""Retry times for refused requests: the waiting requests divided by the rate of completions. Pure.

Clients that are refused at the same moment with the same retry time would come back together. Each therefore gets its
own time. Refused requests form a line behind the queue and come back in its order, at the rate of completions. The line
starts when half of the queue is gone. The first requests then find room even though the rate is only estimated, and the
engine still has work until they arrive.
"""

from __future__ import annotations

LEAST_S, MOST_S = 0.25, 55.0
"""Some versions of OpenAI's and Anthropic's clients ignore a retry time above 60 s."""

UNKNOWN_S = (0.5, 4.0)
"""Bounds of the retry time before a rate is measured. The rate is known when the first clients come back."""

LEAST_COMPLETED, LEAST_MEMORY = 3, 16
"""Completions until the rate is known, and the least number of completions that it averages."""

QUEUE_SHARE = 0.5
SPREAD = 0.2
"""Largest share by which a wait is shortened, as far as the queue has room for early requests."""


class RetryTimes:
    """The completion rate of one engine, and the line of refused requests. Times are on the caller's clock.

    The rate comes from Little's law: requests in the engine over the mean time that one spends there. Unlike a count of
    completions, it is right from the first completion on.
    """

    def __init__(self) -> None:
        self._completed = 0
        self._in_flight = 0.0
        self._took_s = 0.0
        self._last_s = 0.0
        self._waits = False
        self._lines_s: dict[int, float] = {}
        """When the last request of each line will come back, by priority."""

    def set_waiting(self, waits: bool, now_s: float) -> None:
        """Record whether requests wait from now on."""
        if waits and not self._waits:
            self._last_s = now_s
        self._waits = waits

    def record_completion(self, in_flight: int, took_s: float, now_s: float) -> None:
        """Record a completed request that spent `took_s` in the engine, as one of `in_flight`.

        Without waiting requests it is ignored, because it would measure the demand and not the engine's capacity.
        """
        if not self._waits:
            return
        self._completed += 1
        weight = max(1.0 / self._completed, 1.0 / max(LEAST_MEMORY, 2 * in_flight))
        self._in_flight += weight * (in_flight - self._in_flight)
        self._took_s += weight * (took_s - self._took_s)
        self._last_s = now_s

    def rate(self, now_s: float) -> float | None:
        """Completions a second while others wait. None: not known yet. The rate falls while none completes."""
        if self._completed < LEAST_COMPLETED:
            return None
        return self._in_flight / max(self._took_s, now_s - self._last_s, 1e-3)

    def retry_s(self, ahead: float, priority: int, now_s: float, chance: float) -> float:
        """Seconds after which a request that is refused now should come back.

        `ahead`: waiting requests that go before it; `priority`: the line that it joins; `chance`: a random number from
        0 to 1, drawn for each request.
        """
        rate = self.rate(now_s)
        if rate is None:
            least_s, most_s = UNKNOWN_S
            return least_s + (most_s - least_s) * chance
        last_s, half_s = self._lines_s.get(priority, 0.0), QUEUE_SHARE * ahead / rate
        wait_s = max(last_s + 1.0 / rate, now_s + half_s) - now_s
        self._lines_s[priority] = now_s + min(wait_s, MOST_S)
        if wait_s > MOST_S:
            # The line is longer than clients wait. Spread them over the second half of that time.
            return MOST_S * (1.0 - 0.5 * chance)
        return max(wait_s - chance * min(SPREAD * wait_s, half_s + 1.0 / rate), LEAST_S)
