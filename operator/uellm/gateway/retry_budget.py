"""How many requests may be sent to a second replica. Pure.

Retries help while few requests fail. When all fail they only multiply the load, so they are limited to a share of the
requests, and to a burst.
"""

from __future__ import annotations

SHARE = 0.2
"""Retries for each request."""
BURST = 10.0


class RetryBudget:
    """A token bucket that requests fill and retries empty."""

    def __init__(self, share: float = SHARE, burst: float = BURST) -> None:
        self._share, self._burst = share, burst
        self._tokens = burst

    def request(self) -> None:
        """A request came."""
        self._tokens = min(self._tokens + self._share, self._burst)

    def take(self) -> bool:
        """Whether one more retry is allowed; it then counts."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
