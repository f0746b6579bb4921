"""The search for a policy's settings: each setting is a share of what a saturated replica holds.

The larger the share, the fewer the replicas, and the lower the attainment. That holds roughly, so every setting that
was tried is kept, and each question is answered by the best of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uellm.evaluate.scenario import ALL

LEAST, MOST = 0.1, 1.5
"""Shares."""
HALVINGS = 4
REFINEMENTS = 2
"""Further settings for each comparison with another policy."""

Result = dict[str, Any]


class Tuning:
    """The settings of one policy that were tried on one day."""

    def __init__(self, run: Callable[[float], Result]) -> None:
        """`run` gives an entry of `results` for a share."""
        self._run = run
        self._tried: dict[float, Result] = {}

    def cheapest(self, wanted: float) -> Result:
        """The fewest GPU hours that attain so much, or, where no setting does, the most that is attained."""
        self._halve(lambda found: attained(found) >= wanted, HALVINGS)
        good = [found for found in self._tried.values() if attained(found) >= wanted]
        return min(good, key=hours) if good else max(self._tried.values(), key=attained)

    def beside(self, other: Result) -> dict[str, float | None]:
        """The fewest hours with the other's attainment or more, and the most attained in its hours or fewer."""
        self._halve(lambda found: attained(found) >= attained(other), REFINEMENTS)
        self._halve(lambda found: hours(found) > hours(other), REFINEMENTS)
        tried = self._tried.values()
        return {
            "gpuHoursAtItsAttainment": min(
                (hours(found) for found in tried if attained(found) >= attained(other)), default=None
            ),
            "attainmentAtItsGpuHours": max(
                (attained(found) for found in tried if hours(found) <= hours(other)), default=None
            ),
        }

    def _halve(self, raise_after: Callable[[Result], bool], times: int) -> None:
        """Try settings between the largest share that may be raised and the next larger one that may not."""
        for _ in range(times):
            low = max((share for share, found in self._tried.items() if raise_after(found)), default=LEAST)
            high = min((share for share in self._tried if share > low), default=MOST)
            middle = (low + high) / 2
            self._tried[middle] = self._run(middle)


def attained(result: Result) -> float:
    """Of all requests."""
    return float(result["attainment"][ALL])


def hours(result: Result) -> float:
    """GPU hours."""
    return float(result["gpuHours"])
