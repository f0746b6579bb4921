"""What running pods report through their sidecars: where the engine was placed, and how requests fared."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import httpx

from uellm.api.names import METRICS_PORT
from uellm.reconcile.names import uid_of
from uellm.reconcile.pods.attainment import ClassMeasurement, read_measurements
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.placements import ReportedPlacement, read_report

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0
# A report is written once per start of the engine's container. It is read again at times in case it was replaced.
REFRESH_S = 600.0
# New measurements are written to the status at most this often.
MEASURE_S = 60.0
# Requests at a time: fewer than the controller has passes at a time.
MOST_OPEN = 16
# How long an address that has kept silent is left alone, growing from the first to the second.
FIRST_SILENCE_S = 5.0
LONGEST_SILENCE_S = 300.0
# Addresses of which silence is remembered.
MOST_SILENT = 10_000
_LARGEST_BYTES = 256 * 1024

Fetch = Callable[[str], Awaitable[Mapping[str, Any] | None]]
"""Pod IP -> the report, or None where there is none yet."""


class Reports:
    """Placement reports by pod uid, read again after each start of the engine's container."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._known: dict[str, ReportedPlacement] = {}
        self._asked_at_s: dict[str, float] = {}

    async def refresh(self, pods: Sequence[Mapping[str, Any]]) -> bool:
        """Read reports that are missing or old. True where one is still missing."""
        due = [pod for pod in living(pods) if self._is_due(pod)]
        await asyncio.gather(*(self._ask(pod) for pod in due))
        return any(self._is_missing(pod) for pod in living(pods))

    def of(self, pods: Sequence[Mapping[str, Any]]) -> dict[str, ReportedPlacement]:
        """The reports of these pods, by uid."""
        return {uid: self._known[uid] for pod in pods if (uid := uid_of(pod)) in self._known}

    def keep(self, uids: set[str]) -> None:
        """Drop the reports of all pods but these."""
        for uid in self._asked_at_s.keys() - uids:
            del self._asked_at_s[uid]
            self._known.pop(uid, None)

    def _is_missing(self, pod: Mapping[str, Any]) -> bool:
        start = engine_start(pod)
        report = self._known.get(uid_of(pod))
        return start is not None and (report is None or report.start != start)

    def _is_due(self, pod: Mapping[str, Any]) -> bool:
        if not pod["status"].get("podIP") or engine_start(pod) is None:
            return False
        asked = self._asked_at_s.get(uid_of(pod))
        return self._is_missing(pod) or asked is None or self._clock() - asked > REFRESH_S

    async def _ask(self, pod: Mapping[str, Any]) -> None:
        uid, start = uid_of(pod), engine_start(pod)
        self._asked_at_s[uid] = self._clock()
        document = await self._fetch(pod["status"]["podIP"])
        if document is not None and start is not None:
            self._known[uid] = read_report(start, document)


class Measurements:
    """SLO measurements by pod uid, read once a minute."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._known: dict[str, tuple[ClassMeasurement, ...]] = {}
        self._asked_at_s: dict[str, float] = {}

    async def refresh(self, pods: Sequence[Mapping[str, Any]]) -> float | None:
        """Read measurements that are old. Returns in how many seconds the next are due; None: no pods run."""
        running = [pod for pod in living(pods) if pod["status"].get("podIP") and engine_start(pod) is not None]
        now_s = self._clock()
        due = [pod for pod in running if now_s - self._asked_at_s.get(uid_of(pod), -MEASURE_S) >= MEASURE_S]
        await asyncio.gather(*(self._ask(pod, now_s) for pod in due))
        return min((self._asked_at_s[uid_of(pod)] + MEASURE_S - now_s for pod in running), default=None)

    def of(self, pods: Sequence[Mapping[str, Any]]) -> dict[str, tuple[ClassMeasurement, ...]]:
        """The measurements of these pods, by uid."""
        return {uid: self._known[uid] for pod in pods if (uid := uid_of(pod)) in self._known}

    def keep(self, uids: set[str]) -> None:
        """Drop the measurements of all pods but these."""
        for uid in self._asked_at_s.keys() - uids:
            del self._asked_at_s[uid]
            self._known.pop(uid, None)

    async def _ask(self, pod: Mapping[str, Any], now_s: float) -> None:
        self._asked_at_s[uid_of(pod)] = now_s
        document = await self._fetch(pod["status"]["podIP"])
        # Measurements of a pod that no longer answers are out of date.
        self._known.pop(uid_of(pod), None)
        if document is not None:
            self._known[uid_of(pod)] = read_measurements(document)


def engine_start(pod: Mapping[str, Any]) -> str | None:
    """Identifies a start of the engine's container; None before the first."""
    for status in pod["status"].get("containerStatuses") or ():
        state = status.get("state") or {}
        if status["name"] == "engine" and ("running" in state or "terminated" in state or status.get("restartCount")):
            return str(status.get("restartCount", 0))
    return None


class HttpReports:
    """GET from the metrics port of a pod's sidecar. An async context manager.

    A network policy may let no packet through, so that every request runs into its timeout. Passes must not wait for
    that: few requests are open at a time, the rest is left for a later pass, and an address that has kept silent is
    asked less and less often.
    """

    def __init__(self, *, port: int = METRICS_PORT, clock: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._clock = clock
        self._open = 0
        self._silent: dict[str, _Silence] = {}
        # Pod addresses are not reachable through a proxy.
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)

    async def __aenter__(self) -> HttpReports:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def placement(self, pod_ip: str) -> Mapping[str, Any] | None:
        """The placement report; None where there is none yet or the pod does not answer."""
        return await self._get(pod_ip, "/uellm/placement")

    async def measurements(self, pod_ip: str) -> Mapping[str, Any] | None:
        """How its requests fared; None where the pod does not answer or is too old to report it."""
        return await self._get(pod_ip, "/uellm/slo")

    async def running(self, pod_ip: str) -> Mapping[str, Any] | None:
        """Revision and configuration that it runs with; None where the pod does not answer or is too old to tell."""
        return await self._get(pod_ip, "/uellm/running")

    async def _get(self, pod_ip: str, path: str) -> Mapping[str, Any] | None:
        silence = self._silent.get(pod_ip)
        if self._open >= MOST_OPEN or (silence is not None and self._clock() < silence.ask_again_s):
            return None
        host = f"[{pod_ip}]" if ":" in pod_ip else pod_ip
        self._open += 1
        try:
            response = await self._client.get(f"http://{host}:{self._port}{path}", timeout=TIMEOUT_S)
        except httpx.TimeoutException:
            self._note_silence(pod_ip)
            return None
        except httpx.HTTPError as error:
            logger.debug("no answer from %s to %s: %s", pod_ip, path, error)
            return None
        finally:
            self._open -= 1
        self._silent.pop(pod_ip, None)
        return parse(response.status_code, response.content)

    def _note_silence(self, pod_ip: str) -> None:
        before = self._silent.pop(pod_ip, None)
        wait_s = FIRST_SILENCE_S if before is None else min(2 * before.wait_s, LONGEST_SILENCE_S)
        while len(self._silent) >= MOST_SILENT:
            del self._silent[next(iter(self._silent))]
        self._silent[pod_ip] = _Silence(self._clock() + wait_s, wait_s)
        logger.debug("no packet from %s; asked again in %.0f s", pod_ip, wait_s)


class _Silence(NamedTuple):
    """An address from which nothing came."""

    ask_again_s: float
    wait_s: float


def parse(status: int, body: bytes) -> Mapping[str, Any] | None:
    """The report in an answer; None for anything else. Pods are not trusted."""
    if status != 200 or len(body) > _LARGEST_BYTES:
        return None
    try:
        document = json.loads(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
