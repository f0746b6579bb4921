"""Which pods have just become ready for the first time. One that gets ready again says nothing about starting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uellm.reconcile.names import Key, uid_of
from uellm.reconcile.pods.pod_state import is_ready


class Starts:
    """Those of all services."""

    def __init__(self) -> None:
        self._first: dict[Key, dict[str, str | None]] = {}
        """When each pod became ready first, by uid; None: before this operator looked."""

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._first.pop(key, None)

    def seen(self, key: Key, pods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of a service's pods that are ready since they were so for the first time. Call it in each pass."""
        known, times = self._first.get(key), {uid_of(pod): _ready_at(pod) for pod in pods if is_ready(pod)}
        if known is None:
            self._first[key] = dict.fromkeys(times)
            return []
        living = {uid_of(pod) for pod in pods}
        known = {uid: at for uid, at in (times | known).items() if uid in living}
        self._first[key] = known
        return [pod for pod in pods if (at := times.get(uid_of(pod))) is not None and at == known[uid_of(pod)]]


def _ready_at(pod: Mapping[str, Any]) -> str | None:
    conditions = pod["status"].get("conditions") or ()
    times = (each.get("lastTransitionTime") for each in conditions if each.get("type") == "Ready")
    return next(times, None)
