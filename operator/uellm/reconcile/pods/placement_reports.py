"""Where the engines of running pods were placed, as their launchers report it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from uellm.reconcile.names import uid_of
from uellm.reconcile.pods.collector import Collector, Fetch
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.placements import ReportedPlacement, read_report
from uellm.reconcile.pods.pod_state import engine_start, is_ready

REFRESH_S = 600.0
POLL_S = 3.0
LONGEST_POLL_S = 300.0
SOON_S = 0.1


class _Asked(NamedTuple):
    """What a pod was like when it was asked, and when it is asked again if it does not answer."""

    start: str | None
    ready: bool
    wait_s: float


class PlacementReports(Collector[ReportedPlacement]):
    """Placement reports: asked for after each start of the engine's container, less and less often, until one comes.

    A pod that has become ready is asked at once.
    """

    def __init__(self, fetch: Fetch, clock: Callable[[], float]) -> None:
        super().__init__(fetch, clock)
        self._asked: dict[str, _Asked] = {}

    async def refresh(self, pods: Sequence[Mapping[str, Any]]) -> float | None:
        """Read reports that are missing or old. Returns in how many seconds a missing one is asked for again."""
        due = [pod for pod in living(pods) if self._is_due(pod)]
        for pod in due:
            self._back_off(pod)
        await self._ask(due)
        missing = [pod for pod in living(pods) if self._is_missing(pod) and uid_of(pod) in self._asked]
        return min((max(SOON_S, self._next_s(uid_of(pod)) - self._clock()) for pod in missing), default=None)

    def _is_missing(self, pod: Mapping[str, Any]) -> bool:
        start = engine_start(pod)
        report = self._known.get(uid_of(pod))
        return start is not None and (report is None or report.start != start)

    def _is_due(self, pod: Mapping[str, Any]) -> bool:
        if not pod["status"].get("podIP") or engine_start(pod) is None:
            return False
        uid, asked = uid_of(pod), self._asked.get(uid_of(pod))
        if asked is None or (asked.start, asked.ready) != (engine_start(pod), is_ready(pod)):
            return True
        if self._is_missing(pod):
            return self._clock() >= self._next_s(uid)
        return self._clock() - self._asked_at_s[uid] > REFRESH_S

    def _next_s(self, uid: str) -> float:
        return self._asked_at_s[uid] + self._asked[uid].wait_s

    def _back_off(self, pod: Mapping[str, Any]) -> None:
        before, start, ready = self._asked.get(uid_of(pod)), engine_start(pod), is_ready(pod)
        same = before is not None and (before.start, before.ready) == (start, ready)
        wait_s = min(2 * before.wait_s, LONGEST_POLL_S) if same and before is not None else POLL_S
        self._asked[uid_of(pod)] = _Asked(start, ready, wait_s)

    def _take(self, pod: Mapping[str, Any], document: Mapping[str, Any] | None) -> None:
        start = engine_start(pod)
        if document is not None and start is not None:
            self._known[uid_of(pod)] = read_report(start, document)

    def _drop(self, uid: str) -> None:
        super()._drop(uid)
        del self._asked[uid]
