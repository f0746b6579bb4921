"""Whether the pods run what the spec says: the revision and the configuration that their sidecars report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from uellm.reconcile.names import revision_label, uid_of
from uellm.reconcile.pods.engine_readiness import EngineReadiness, living
from uellm.reconcile.pods.reports import Fetch

POLL_S = 3.0
LONGEST_POLL_S = 60.0
REFRESH_S = 600.0
_TEXT_LENGTH = 1024


class WantedConfig(NamedTuple):
    """What every pod is to run with."""

    revision: str
    config_digest: str
    """Of `sidecar.yaml`."""


class RunningConfig(NamedTuple):
    """What a pod's sidecar reports to run with."""

    revision: str = ""
    config_digest: str = ""
    refused: str = ""
    """Why it refuses the `sidecar.yaml` that it has now; empty where it has it in force."""


def read_running(document: Mapping[str, Any]) -> RunningConfig:
    """Parse a report. Pods are not trusted: a field of the wrong type counts as absent."""
    texts = (document.get(name) for name in ("revision", "configDigest", "refused"))
    return RunningConfig(*(text[:_TEXT_LENGTH] if isinstance(text, str) else "" for text in texts))


@dataclass
class _Asked:
    at_s: float
    again_in_s: float


class Running:
    """Reports by pod uid: asked for until they are as wanted, less and less often, and then every ten minutes."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._known: dict[str, RunningConfig] = {}
        self._asked: dict[str, _Asked] = {}
        self._wanted: dict[str, WantedConfig] = {}

    async def refresh(self, pods: Sequence[Mapping[str, Any]], wanted: WantedConfig) -> float | None:
        """Ask the pods whose report is due. Returns in how many seconds the next is; None: all are as wanted.

        Pods of another revision are about to go: they are not asked.
        """
        asked = [pod for pod in serving(pods) if pod["status"].get("podIP") and revision_label(pod) == wanted.revision]
        await asyncio.gather(*(self._ask(pod, wanted) for pod in asked if self._is_due(pod, wanted)))
        late = [uid for pod in asked if not self._is_as_wanted(uid := uid_of(pod), wanted)]
        now_s = self._clock()
        return min((self._asked[uid].at_s + self._asked[uid].again_in_s - now_s for uid in late), default=None)

    def of(self, pods: Sequence[Mapping[str, Any]]) -> dict[str, RunningConfig]:
        """The reports of these pods, by uid."""
        return {uid: self._known[uid] for pod in pods if (uid := uid_of(pod)) in self._known}

    def keep(self, uids: set[str]) -> None:
        """Drop the reports of all pods but these."""
        for kept in (self._known, self._asked, self._wanted):
            for uid in kept.keys() - uids:
                del kept[uid]

    def _is_as_wanted(self, uid: str, wanted: WantedConfig) -> bool:
        known = self._known.get(uid)
        return known is not None and known[:2] == wanted

    def _is_due(self, pod: Mapping[str, Any], wanted: WantedConfig) -> bool:
        uid = uid_of(pod)
        asked = self._asked.get(uid)
        if asked is None or self._wanted.get(uid) != wanted:
            return True
        return self._clock() - asked.at_s >= asked.again_in_s

    async def _ask(self, pod: Mapping[str, Any], wanted: WantedConfig) -> None:
        uid, now_s = uid_of(pod), self._clock()
        before = self._asked.get(uid) if self._wanted.get(uid) == wanted else None
        self._wanted[uid] = wanted
        self._asked[uid] = _Asked(now_s, POLL_S if before is None else min(2 * before.again_in_s, LONGEST_POLL_S))
        document = await self._fetch(pod["status"]["podIP"])
        if document is not None:
            self._known[uid] = read_running(document)
            # It answers: the kubelet writes the file within a minute or two, and the sidecar takes it up in seconds.
            self._asked[uid].again_in_s = REFRESH_S if self._is_as_wanted(uid, wanted) else POLL_S


def serving(pods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The living pods that the kubelet calls ready."""
    return [pod for pod in living(pods) if _is_ready(pod)]


def unconfirmed(
    pods: Sequence[Mapping[str, Any]], reports: Mapping[str, RunningConfig], wanted: WantedConfig
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
                f"pod {name} serves, and its sidecar does not tell the operator what it runs: allow the operator to "
                "reach port 8002 of the pods",
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
    return None


def _rolling_out(pod: str, revision: str, wanted: WantedConfig) -> EngineReadiness:
    message = f"pod {pod} runs revision {revision or 'of an earlier release'}, and {wanted.revision} is wanted"
    return EngineReadiness(False, "RollingOut", message)


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod["status"].get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
