"""Whether somebody waits for a replica at the gateway, which writes the time of it again and again while that is so.

A single time counts if it is about now by the operator's clock: one from long ago may come back with a backup. One that
goes on is written by somebody who waits now, however wrong the clock of the gateway's node is.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from uellm.api.names import WANTED_AT_ANNOTATION, WANTED_FOR_S
from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed
from uellm.reconcile.times import moment


class _Wish(NamedTuple):
    """The last one of a service."""

    written: datetime
    """By the gateway's clock."""
    since: datetime
    """From when it counts by the operator's clock."""


class Wishes:
    """Those of all services."""

    def __init__(self) -> None:
        self._last: dict[Key, _Wish] = {}

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._last.pop(key, None)

    def waits(self, observed: Observed, now: datetime) -> bool:
        """Whether somebody has just waited. Call it in each pass."""
        text = (observed.document["metadata"].get("annotations") or {}).get(WANTED_AT_ANNOTATION)
        try:
            written = moment(str(text or ""))
        except ValueError:
            self.forget(observed.key)
            return False
        last = self._last.get(observed.key)
        if last is None or last.written != written:
            goes_on = last is not None and 0 < (written - last.written).total_seconds() <= WANTED_FOR_S
            last = self._last[observed.key] = _Wish(written, now if goes_on else written)
        return -WANTED_FOR_S <= (now - last.since).total_seconds() < WANTED_FOR_S
