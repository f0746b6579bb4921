"""Pods that are held back while other services wait to be planned.

To create them keeps an API server busy for ten times as long as to write the plan down, and a plan is what the next
service waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed

DEFER_PODS_S = 30
"""The longest time for which pods are held back."""


class Deferral:
    """The services whose pods are held back. `on_over` is called with each when no service waits any more."""

    def __init__(self, on_over: Callable[[Key], None] | None) -> None:
        self._on_over = on_over
        self._keys: dict[Key, None] = {}

    def remaining_s(self, observed: Observed, planned: datetime | None, waiting: int, now: datetime) -> float | None:
        """Seconds for which the pods are held back at most; None where they are not.

        `planned`: when the service was planned; None where it has no plan. `waiting`: services that wait to be planned.
        """
        remaining_s = 0.0 if planned is None else DEFER_PODS_S - (now - planned).total_seconds()
        if observed.deployment is not None or not waiting or remaining_s <= 0:
            self._keys.pop(observed.key, None)
            return None
        self._keys[observed.key] = None
        return remaining_s

    def end(self) -> None:
        """No service waits to be planned any more."""
        keys, self._keys = self._keys, {}
        if self._on_over is not None:
            for key in keys:
                self._on_over(key)

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._keys.pop(key, None)
