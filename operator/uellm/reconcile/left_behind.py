"""What a deleted service of the same name has left behind, while it is still being deleted: what holds it, and when to
look again.

It goes soon, and with an event, unless something holds it. That may be for days, so it must cost little.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from uellm.reconcile.names import Key
from uellm.reconcile.pods.pod_state import mounts

Fetch = Callable[[str], Awaitable[Sequence[Mapping[str, Any]] | None]]
"""Namespace -> its whole pods; None where they could not be read."""

READ_EVERY_S = 60.0
SOONEST_RECHECK_S, LATEST_RECHECK_S = 5.0, 60.0


class _Holders(NamedTuple):
    at_s: float
    pods: tuple[str, ...]


class ClaimHolders:
    """The pods that keep the claim of a namesake from being deleted, whoever's they are.

    Only a list of all pods of the namespace tells them, so that is read now and then.
    """

    def __init__(self, fetch: Fetch, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._known: dict[Key, _Holders] = {}

    async def of(self, key: Key, claim: str) -> tuple[str, ...]:
        """Their names, as they were read last; none where they are not known."""
        known = self._known.get(key)
        if known is None or self._clock() >= known.at_s + READ_EVERY_S:
            pods = await self._fetch(key.namespace)
            if pods is not None:
                names = tuple(sorted(pod["metadata"]["name"] for pod in pods if mounts(pod, claim)))
            else:
                names = () if known is None else known.pods
            known = self._known[key] = _Holders(self._clock(), names)
        return known.pods

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._known.pop(key, None)


class Rechecks:
    """When to look again, of each service that waits for this."""

    def __init__(self) -> None:
        self._since: dict[Key, datetime] = {}

    def due_in_s(self, key: Key, now: datetime) -> float:
        """After as long as it has been waited for already."""
        waited_s = (now - self._since.setdefault(key, now)).total_seconds()
        return min(max(waited_s, SOONEST_RECHECK_S), LATEST_RECHECK_S)

    def forget(self, key: Key) -> None:
        """The service does not wait for it, or is gone."""
        self._since.pop(key, None)
