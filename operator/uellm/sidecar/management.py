"""The metrics port: metrics, reports of placement and load, probes, and the drain request.

The engine's parent, which answers the kubelet's probes of the engine, asks here whether the engine hangs.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from uellm import drain_token
from uellm.api.running_report import RunningReport
from uellm.http import Fault, Pairs, Reply, Request
from uellm.pod_interface import (
    ATTAINMENT_PATH,
    DRAIN_PATH,
    ENGINE_LIVE_PATH,
    ENGINE_READY_PATH,
    HANGING_FIELD,
    LAME_DUCK_S,
    LOAD_PATH,
    PLACEMENT_PATH,
    RUNNING_PATH,
)
from uellm.proxying.drain import GRACE_S
from uellm.proxying.metrics import CONTENT_TYPE
from uellm.sidecar.engine.connection import EngineConnection, EngineHealth
from uellm.sidecar.load_stream import Load, LoadStream
from uellm.sidecar.request.proxy import Proxy

_JSON: Pairs = ((b"Content-Type", b"application/json"),)
_TEXT: Pairs = ((b"Content-Type", CONTENT_TYPE.encode()),)


class Management:
    """The handlers of the metrics port."""

    def __init__(
        self,
        proxy: Proxy,
        engine: EngineConnection,
        placement: Path | None,
        running: Callable[[], RunningReport],
        load: Load,
        *,
        grace_s: float = GRACE_S,
        lame_duck_s: float = LAME_DUCK_S,
    ) -> None:
        self._proxy = proxy
        self._engine = engine
        self._placement = placement
        self._running = running
        self._grace_s = grace_s
        self._lame_duck_s = lame_duck_s

        self._routes: dict[tuple[str, str], Callable[[Request, Reply], Awaitable[None]]] = {
            ("GET", "/metrics"): self._metrics,
            ("GET", PLACEMENT_PATH): self._report,
            ("GET", RUNNING_PATH): self._what_runs,
            ("GET", ATTAINMENT_PATH): self._slo,
            ("GET", LOAD_PATH): LoadStream(load).serve,
            ("POST", DRAIN_PATH): self._drain,
            ("GET", "/engine/startup"): self._probe(lambda: engine.ready),
            ("GET", ENGINE_LIVE_PATH): self._probe(self._live),
            ("GET", ENGINE_READY_PATH): self._probe(lambda: engine.ready),
            ("GET", "/livez"): self._probe(lambda: True),
            ("GET", "/readyz"): self._probe(lambda: engine.ready and not proxy.drain.draining),
        }

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        method = "GET" if request.method == "HEAD" else request.method
        route = self._routes.get((method, request.path))
        if route is not None:
            await route(request, reply)
        elif any(path == request.path for _, path in self._routes):
            _error(reply, 405, "this method is not allowed here")
        else:
            _error(reply, 404, "no such path")

    def unreadable(self, fault: Fault) -> tuple[Pairs, bytes]:
        """Headers and body of the answer to a message that is not HTTP."""
        return _JSON, _error_body(fault.message)

    async def _metrics(self, request: Request, reply: Reply) -> None:
        reply.send(200, _TEXT, (await self._proxy.metrics()).encode())

    async def _report(self, request: Request, reply: Reply) -> None:
        report = _read(self._placement)
        if report is None:
            _error(reply, 404, "the launcher has not reported yet")
        else:
            reply.send(200, _JSON, report)

    async def _what_runs(self, request: Request, reply: Reply) -> None:
        reply.send(200, _JSON, json.dumps(self._running().to_dict()).encode())

    async def _slo(self, request: Request, reply: Reply) -> None:
        reply.send(200, _JSON, json.dumps(self._proxy.attainment().to_dict()).encode())

    async def _drain(self, request: Request, reply: Reply) -> None:
        if not self._from_this_pod(request):
            message = f"only the pod's own preStop hook may drain it: send the content of {drain_token.FILE} as "
            _error(reply, 403, f"{message}{drain_token.HEADER}")
            return
        started_s = asyncio.get_running_loop().time()
        self._proxy.drain.begin(lame_duck_s=self._lame_duck_s)
        drained = await self._proxy.drain.wait(self._grace_s)
        answer = {
            "drained": drained,
            "remaining": self._proxy.drain.active,
            "seconds": round(asyncio.get_running_loop().time() - started_s, 1),
        }
        reply.send(200, _JSON, json.dumps(answer).encode())

    def _from_this_pod(self, request: Request) -> bool:
        """Whether the request has the secret that only this pod's containers can read and write."""
        given = request.headers.get(drain_token.HEADER)
        if not given or self._placement is None:
            return False
        try:
            expected = (self._placement.parent / drain_token.FILE).read_bytes()
        except OSError:
            return False
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected)

    def _live(self) -> bool:
        """Starting counts as alive: the startup probe judges an engine that has never answered."""
        return self._engine.health in (EngineHealth.STARTING, EngineHealth.READY)

    def _probe(self, good: Callable[[], bool]) -> Callable[[Request, Reply], Awaitable[None]]:
        async def answer(request: Request, reply: Reply) -> None:
            document = {
                "engine": str(self._engine.health),
                HANGING_FIELD: self._engine.hanging,
                "draining": self._proxy.drain.draining,
            }
            reply.send(200 if good() else 503, _JSON, json.dumps(document).encode())

        return answer


def _error(reply: Reply, status: int, message: str) -> None:
    reply.send(status, _JSON, _error_body(message))


def _error_body(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


def _read(path: Path | None) -> bytes | None:
    """Content of the report. None if it is missing or not a complete JSON document."""
    try:
        content = None if path is None else path.read_bytes()
        json.loads(content or b"")
    except (OSError, ValueError):
        return None
    return content
