"""Which profiles nobody keeps any longer: their profiler is gone, so who has the node's GPUs is not known. Pure.

A profiler promises to write `observedAt` anew every `heartbeatSeconds`. A profile is stale when this operator has seen
no new one for `PERIODS` of these. The times are those at which the operator saw a change, by its own monotonic clock: a
node's clock may be wrong, and so may the API server's. An operator that was just started has seen nothing yet and
trusts every profile for as long. A profile without `heartbeatSeconds` was written by hand or by a test: nobody promised
anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

PERIODS = 3
"""A profiler that misses two heartbeats may wait for the API server."""


class _Renewal(NamedTuple):
    observed_at: str
    since_s: float


class ProfileAges:
    """When each profile was seen to change."""

    def __init__(self) -> None:
        self._seen: dict[str, _Renewal] = {}

    def stale(self, profiles: Iterable[Mapping[str, Any]], now_s: float) -> dict[str, str]:
        """Why each stale profile is not planned on, by node. `now_s`: of a monotonic clock."""
        before, self._seen = self._seen, {}
        found = {}
        for profile in profiles:
            name, status = profile["metadata"]["name"], profile.get("status") or {}
            observed_at, heartbeat_s = status.get("observedAt", ""), status.get("heartbeatSeconds")
            known = before.get(name)
            seen = known if known and known.observed_at == observed_at else _Renewal(observed_at, now_s)
            self._seen[name] = seen
            if heartbeat_s and now_s - seen.since_s > PERIODS * heartbeat_s:
                minutes = math.ceil(PERIODS * heartbeat_s / 60)
                found[name] = (
                    f"its profile has not been renewed for more than {minutes} minute{'' if minutes == 1 else 's'}: "
                    "is the profiler running there, and does the driver answer it?"
                )
        return found
