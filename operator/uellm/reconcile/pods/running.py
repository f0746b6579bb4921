"""Whether the pods run what the spec asks for, by the revision and configuration that their sidecars report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from uellm.api.running_report import RunningReport
from uellm.documents import UnreadableDocument
from uellm.pod_interface import METRICS_PORT
from uellm.reconcile.names import revision_label, uid_of
from uellm.reconcile.pods.collector import Collector, Fetch
from uellm.reconcile.pods.engine_readiness import EngineReadiness, living
from uellm.reconcile.pods.pod_state import is_ready

POLL_S = 3.0
LONGEST_POLL_S = 300.0
REFRESH_S = 600.0


class WantedConfig(NamedTuple):
    """The revision and configuration that every pod should run."""

    revision: str
    config_digest: str
    """Of `sidecar.yaml`."""
    adapters: tuple[str, ...] = ()
    """Names of the LoRA adapters in it."""


def read_running(document: Mapping[str, Any]) -> RunningReport:
    """A sidecar's report; an empty one where it is of another version."""
    try:
        return RunningReport.from_dict(document)
    except UnreadableDocument:
        return RunningReport()


class RunningReports(Collector[RunningReport]):
    """What sidecars run with: asked for until it is as wanted, less and less often, and then every ten minutes."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float]) -> None:
        super().__init__(fetch, clock)
        self._ask_again_in_s: dict[str, float] = {}
        self._wanted: dict[str, WantedConfig] = {}

    async def refresh(self, pods: Sequence[Mapping[str, Any]], wanted: WantedConfig) -> float | None:
        """Ask the pods whose report is due. Returns in how many seconds the next is; None: all are as wanted.

        Pods of another revision are about to go: they are not asked.
        """
        current = [
            pod for pod in serving(pods) if pod["status"].get("podIP") and revision_label(pod) == wanted.revision
        ]
        due = [pod for pod in current if self._is_due(uid_of(pod), wanted)]
        for pod in due:
            self._back_off(uid_of(pod), wanted)
        await self._ask(due)
        late = [uid for pod in current if not self._is_as_wanted(uid := uid_of(pod))]
        now_s = self._clock()
        return min((self._asked_at_s[uid] + self._ask_again_in_s[uid] - now_s for uid in late), default=None)

    def _is_due(self, uid: str, wanted: WantedConfig) -> bool:
        if self._wanted.get(uid) != wanted:
            return True
        return self._clock() - self._asked_at_s.get(uid, -math.inf) >= self._ask_again_in_s[uid]

    def _back_off(self, uid: str, wanted: WantedConfig) -> None:
        before_s = self._ask_again_in_s[uid] if self._wanted.get(uid) == wanted else POLL_S / 2
        self._wanted[uid] = wanted
        self._ask_again_in_s[uid] = min(2 * before_s, LONGEST_POLL_S)

    def _is_as_wanted(self, uid: str) -> bool:
        known, wanted = self._known.get(uid), self._wanted[uid]
        if known is None or (known.revision, known.config_digest) != (wanted.revision, wanted.config_digest):
            return False
        return set(known.adapters) == set(wanted.adapters)

    def _take(self, pod: Mapping[str, Any], document: Mapping[str, Any] | None) -> None:
        if document is not None:
            uid = uid_of(pod)
            self._known[uid] = read_running(document)
            # It answers: the kubelet writes the file within a minute or two, and the sidecar takes it up in seconds.
            self._ask_again_in_s[uid] = REFRESH_S if self._is_as_wanted(uid) else POLL_S

    def _drop(self, uid: str) -> None:
        super()._drop(uid)
        del self._ask_again_in_s[uid], self._wanted[uid]


def serving(pods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The living pods that the kubelet calls ready."""
    return [pod for pod in living(pods) if is_ready(pod)]


def unconfirmed(
    pods: Sequence[Mapping[str, Any]], reports: Mapping[str, RunningReport], wanted: WantedConfig
) -> EngineReadiness | None:
    """Why pods that serve do not yet run what is wanted; None where every one of them reports that it does."""
    for pod in serving(pods):
        name, report = pod["metadata"]["name"], reports.get(uid_of(pod))
        if revision_label(pod) != wanted.revision:
            return _rolling_out(name, revision_label(pod), wanted)
        if report is None:
            return EngineReadiness(
                False,
                "NotReported",
                f"pod {name} serves, and its sidecar does not report to the operator what it runs: allow the operator "
                f"to reach port {METRICS_PORT} of the pods",
            )
        if report.refused and report.config_digest != wanted.config_digest:
            return EngineReadiness(False, "ReloadRefused", f"the sidecar of pod {name} refuses: {report.refused}")
        if not report.revision:
            message = (
                f"the sidecar of pod {name} is too old to report its revision: remove its image from spec.template"
            )
            return EngineReadiness(False, "NotReported", message, stalled=True)
        if report.revision != wanted.revision:
            return _rolling_out(name, report.revision, wanted)
        if report.config_digest != wanted.config_digest:
            message = f"the sidecar of pod {name} has not taken over the new configuration yet"
            return EngineReadiness(False, "Reloading", message)
        if trouble := _adapter_trouble(name, report, wanted):
            return trouble
    return None


def _adapter_trouble(pod: str, report: RunningReport, wanted: WantedConfig) -> EngineReadiness | None:
    """Why a pod with the wanted configuration does not serve every adapter of it."""
    missing = [name for name in wanted.adapters if name not in report.adapters]
    if not missing:
        return None
    reasons = dict(report.failed_adapters)
    if failed := next((name for name in missing if name in reasons), None):
        return EngineReadiness(False, "AdapterFailed", f"pod {pod} does not serve adapter {failed}: {reasons[failed]}")
    return EngineReadiness(False, "AdaptersLoading", f"pod {pod} is loading adapter {missing[0]}")


def _rolling_out(pod: str, revision: str, wanted: WantedConfig) -> EngineReadiness:
    message = f"pod {pod} runs revision {revision or 'of an earlier release'}, and {wanted.revision} is wanted"
    return EngineReadiness(False, "RollingOut", message)
