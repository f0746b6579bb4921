"""Pods that are held back while other services wait for a plan, or for theirs to be written down.

To create them keeps an API server busy for ten times as long as to write the plan down, and a plan is what the next
service waits for. Where so many wait that a minute is not enough, pods are created at a pace that leaves the API server
to the plans.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed

DEFER_PODS_S = 60
"""The longest time for which the pods of the first service are held back."""
PACE_S = 1.0
"""From the pods of one service to those of the next, while other services still wait."""
LONGEST_S = 300
"""The longest time for which any pods are held back."""


class Deferral:
    """The services whose pods are held back. `on_over` is called with each when nothing has to go ahead any more."""

    def __init__(self, on_over: Callable[[Key], None] | None) -> None:
        self._on_over = on_over
        self._held_back: dict[Key, datetime] = {}
        """Until when, in the order in which they were planned."""
        self._last: datetime | None = None
        """When the pods of the last of them are due."""
        self._unwritten: set[Key] = set()
        self._waiting = 0

    def waiting(self, services: int) -> None:
        """So many services wait to be planned."""
        self._waiting = services
        self._end_if_over()

    def planned(self, key: Key) -> None:
        """A service has a plan that is not written down yet."""
        self._unwritten.add(key)

    def written(self, key: Key) -> None:
        """The plan of a service is written down, or it has none."""
        self._unwritten.discard(key)
        self._end_if_over()

    def remaining_s(self, observed: Observed, planned: datetime | None, now: datetime) -> float | None:
        """Seconds for which the pods of a service are held back at most; None where they are not.

        `planned`: when the service was planned; None where it has no plan.
        """
        ahead = self._waiting or self._unwritten - {observed.key}
        if observed.deployment is not None or planned is None or not ahead:
            self._held_back.pop(observed.key, None)
            return None
        if observed.key not in self._held_back:
            self._held_back[observed.key] = self._last = self._due(planned)
        remaining_s = (self._held_back[observed.key] - now).total_seconds()
        return remaining_s if remaining_s > 0 else None

    def _due(self, planned: datetime) -> datetime:
        due = planned + timedelta(seconds=DEFER_PODS_S)
        if self._last is not None:
            due = max(due, min(self._last + timedelta(seconds=PACE_S), planned + timedelta(seconds=LONGEST_S)))
        return due

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._held_back.pop(key, None)
        self.written(key)

    def _end_if_over(self) -> None:
        if self._waiting or self._unwritten:
            return
        keys, self._held_back, self._last = self._held_back, {}, None
        if self._on_over is not None:
            for key in keys:
                self._on_over(key)
