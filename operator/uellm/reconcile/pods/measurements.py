"""How the requests of running pods fared, as their sidecars report it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from uellm.api.attainment_report import AttainmentReport, ClassMeasurement, LoadMeasurement, StepMeasurement
from uellm.reconcile.names import uid_of
from uellm.reconcile.pods.attainment import read_report
from uellm.reconcile.pods.collector import Collector, Fetch
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.pod_state import engine_start
from uellm.reconcile.pods.sidecar_client import NotAsked

MEASURE_S = 60.0
LONGEST_MEASURE_S = 300.0
AGAIN_S = 1.0
"""Until pods are asked for which there was no free connection."""
LOAD_KEPT_S = 60.0
"""A load still counts for so long where a pod does not answer: one that is busy may be slow to."""


class TimedLoad(NamedTuple):
    """A pod's load, and when it was read, in seconds of the collectors' clock."""

    at_s: float
    load: LoadMeasurement


class Measurements(Collector[tuple[ClassMeasurement, ...]]):
    """SLO measurements, read once a minute, and less often where they stay as they are: at least every 5 minutes."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float]) -> None:
        super().__init__(fetch, clock)
        self._every_s: dict[str, float] = {}
        self._steps: dict[str, StepMeasurement] = {}
        self._loads: dict[str, TimedLoad] = {}
        self._shown_at_s: dict[str, float] = {}

    def step_times_of(self, pods: Sequence[Mapping[str, Any]]) -> dict[str, StepMeasurement]:
        """The step times that these pods measured, by uid."""
        return {uid: self._steps[uid] for pod in pods if (uid := uid_of(pod)) in self._steps}

    def loads_of(self, pods: Sequence[Mapping[str, Any]]) -> dict[str, TimedLoad]:
        """The last load that these pods reported, by uid."""
        return {uid: self._loads[uid] for pod in pods if (uid := uid_of(pod)) in self._loads}

    async def refresh(self, pods: Sequence[Mapping[str, Any]], most_s: float = math.inf) -> float | None:
        """Read measurements that are old. Returns in how many seconds the next are due; None: no pods run.

        `most_s`: the longest time between two readings.
        """
        running = [pod for pod in living(pods) if pod["status"].get("podIP") and engine_start(pod) is not None]
        # Those that have waited longest come first: there may not be enough connections for all of them.
        due = sorted(running, key=lambda pod: self._asked_at_s.get(uid_of(pod), -math.inf))
        await self._ask([pod for pod in due if self._in_s(pod, most_s) <= 0.0])
        return min((max(AGAIN_S, self._in_s(pod, most_s)) for pod in running), default=None)

    async def _ask_one(self, pod: Mapping[str, Any]) -> None:
        """A pod that could not be asked is due as before, and what it said before still holds."""
        uid = uid_of(pod)
        before_s = self._asked_at_s.pop(uid, None)
        try:
            await super()._ask_one(pod)
        except NotAsked:
            del self._asked_at_s[uid]
            if before_s is not None:
                self._asked_at_s[uid] = before_s

    def _in_s(self, pod: Mapping[str, Any], most_s: float) -> float:
        uid = uid_of(pod)
        every_s = min(self._every_s.get(uid, MEASURE_S), most_s)
        return self._asked_at_s.get(uid, -math.inf) + every_s - self._clock()

    def _take(self, pod: Mapping[str, Any], document: Mapping[str, Any] | None) -> None:
        uid, before = uid_of(pod), self._known.get(uid_of(pod))
        if document is None:
            # Measurements of a pod that no longer answers are out of date.
            self._known.pop(uid, None)
            self._steps.pop(uid, None)
            self._shown_at_s.pop(uid, None)
            if uid in self._loads and self._clock() - self._loads[uid].at_s > LOAD_KEPT_S:
                del self._loads[uid]
        else:
            report = read_report(document)
            if self._clock() - self._shown_at_s.get(uid, -math.inf) >= MEASURE_S:
                self._show(uid, report)
            self._loads.pop(uid, None)
            if report.load is not None:
                self._loads[uid] = TimedLoad(self._clock(), report.load)
        same = uid in self._every_s and before == self._known.get(uid)
        self._every_s[uid] = min(2 * self._every_s[uid], LONGEST_MEASURE_S) if same else MEASURE_S

    def _show(self, uid: str, report: AttainmentReport) -> None:
        """What goes into the status changes at most once a minute, however often the load is read."""
        self._shown_at_s[uid] = self._clock()
        self._known[uid] = report.classes
        self._steps.pop(uid, None)
        if report.steps is not None:
            self._steps[uid] = report.steps

    def _drop(self, uid: str) -> None:
        super()._drop(uid)
        self._every_s.pop(uid, None)
        self._shown_at_s.pop(uid, None)
        self._steps.pop(uid, None)
        self._loads.pop(uid, None)
