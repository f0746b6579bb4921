"""How the requests of running pods fared, as their sidecars report it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uellm.api.attainment_report import ClassMeasurement
from uellm.reconcile.names import uid_of
from uellm.reconcile.pods.attainment import read_measurements
from uellm.reconcile.pods.collector import Collector
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.pod_state import engine_start

MEASURE_S = 60.0
"""New measurements are written to the status at most this often."""


class Measurements(Collector[tuple[ClassMeasurement, ...]]):
    """SLO measurements, read once a minute."""

    async def refresh(self, pods: Sequence[Mapping[str, Any]]) -> float | None:
        """Read measurements that are old. Returns in how many seconds the next are due; None: no pods run."""
        running = [pod for pod in living(pods) if pod["status"].get("podIP") and engine_start(pod) is not None]
        now_s = self._clock()
        await self._ask([pod for pod in running if now_s - self._asked_at_s.get(uid_of(pod), -MEASURE_S) >= MEASURE_S])
        return min((self._asked_at_s[uid_of(pod)] + MEASURE_S - now_s for pod in running), default=None)

    def _take(self, pod: Mapping[str, Any], document: Mapping[str, Any] | None) -> None:
        if document is None:
            # Measurements of a pod that no longer answers are out of date.
            self._known.pop(uid_of(pod), None)
        else:
            self._known[uid_of(pod)] = read_measurements(document)
