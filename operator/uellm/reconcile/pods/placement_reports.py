"""Where the engines of running pods were placed, as their launchers report it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uellm.reconcile.names import uid_of
from uellm.reconcile.pods.collector import Collector
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.placements import ReportedPlacement, read_report
from uellm.reconcile.pods.pod_state import engine_start

REFRESH_S = 600.0
"""A report is written once per start of the engine's container. It is read again at times in case it was replaced."""


class PlacementReports(Collector[ReportedPlacement]):
    """Placement reports, read again after each start of the engine's container."""

    async def refresh(self, pods: Sequence[Mapping[str, Any]]) -> bool:
        """Read reports that are missing or old. True where one is still missing."""
        await self._ask([pod for pod in living(pods) if self._is_due(pod)])
        return any(self._is_missing(pod) for pod in living(pods))

    def _is_missing(self, pod: Mapping[str, Any]) -> bool:
        start = engine_start(pod)
        report = self._known.get(uid_of(pod))
        return start is not None and (report is None or report.start != start)

    def _is_due(self, pod: Mapping[str, Any]) -> bool:
        if not pod["status"].get("podIP") or engine_start(pod) is None:
            return False
        asked_at_s = self._asked_at_s.get(uid_of(pod))
        return self._is_missing(pod) or asked_at_s is None or self._clock() - asked_at_s > REFRESH_S

    def _take(self, pod: Mapping[str, Any], document: Mapping[str, Any] | None) -> None:
        start = engine_start(pod)
        if document is not None and start is not None:
            self._known[uid_of(pod)] = read_report(start, document)
