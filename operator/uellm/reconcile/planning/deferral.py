"""Pods that are held back while other services wait for a plan, or for theirs to be written down.

To create them keeps an API server busy for ten times as long as to write the plan down, and a plan is what the next
service waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed

DEFER_PODS_S = 60
"""The longest time for which pods are held back."""


class Deferral:
    """The services whose pods are held back. `on_over` is called with each when nothing has to go ahead any more."""

    def __init__(self, on_over: Callable[[Key], None] | None) -> None:
        self._on_over = on_over
        self._held_back: dict[Key, None] = {}
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
        remaining_s = 0.0 if planned is None else DEFER_PODS_S - (now - planned).total_seconds()
        ahead = self._waiting or self._unwritten - {observed.key}
        if observed.deployment is not None or not ahead or remaining_s <= 0:
            self._held_back.pop(observed.key, None)
            return None
        self._held_back[observed.key] = None
        return remaining_s

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._held_back.pop(key, None)
        self.written(key)

    def _end_if_over(self) -> None:
        if self._waiting or self._unwritten:
            return
        keys, self._held_back = self._held_back, {}
        if self._on_over is not None:
            for key in keys:
                self._on_over(key)
