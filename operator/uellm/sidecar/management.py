"""The metrics port: figures, the placement report, the probes of engine and sidecar, and the request to drain.

The kubelet cannot reach an engine on loopback, so it asks here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from uellm.sidecar.drain import GRACE_S, LAME_DUCK_S
from uellm.sidecar.engine import Engine, EngineState
from uellm.sidecar.metrics import CONTENT_TYPE
from uellm.sidecar.proxy import Proxy


class Management:
    """The handlers of the metrics port."""

    def __init__(
        self,
        proxy: Proxy,
        engine: Engine,
        placement: Path | None,
        *,
        grace_s: float = GRACE_S,
        lame_duck_s: float = LAME_DUCK_S,
    ) -> None:
        self._proxy = proxy
        self._engine = engine
        self._placement = placement
        self._grace_s = grace_s
        self._lame_duck_s = lame_duck_s

    def application(self) -> web.Application:
        """All the routes."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/uellm/placement", self._report),
                web.post("/uellm/drain", self._drain),
                web.get("/engine/startup", self._probe(lambda: self._engine.ready)),
                web.get("/engine/live", self._probe(self._live)),
                web.get("/engine/ready", self._probe(lambda: self._engine.ready)),
                web.get("/livez", self._probe(lambda: True)),
                web.get("/readyz", self._probe(lambda: self._engine.ready and not self._proxy.drain.draining)),
            ]
        )
        return application

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=(await self._proxy.metrics()).encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _report(self, request: web.Request) -> web.Response:
        report = _read(self._placement)
        if report is None:
            return web.json_response({"error": {"message": "the launcher has not reported yet"}}, status=404)
        return web.Response(body=report, content_type="application/json")

    async def _drain(self, request: web.Request) -> web.Response:
        if not _from_this_pod(request):
            return web.json_response({"error": {"message": "only the pod's own preStop hook may drain it"}}, status=403)
        started_s = asyncio.get_running_loop().time()
        self._proxy.drain.begin(lame_duck_s=self._lame_duck_s)
        drained = await self._proxy.drain.wait(self._grace_s)
        answer = {
            "drained": drained,
            "remaining": self._proxy.drain.active,
            "seconds": round(asyncio.get_running_loop().time() - started_s, 1),
        }
        return web.json_response(answer)

    def _live(self) -> bool:
        """An engine that has never answered is starting, which the startup probe judges."""
        return self._engine.state in (EngineState.STARTING, EngineState.READY)

    def _probe(self, good: Callable[[], bool]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            document = {"engine": str(self._engine.state), "draining": self._proxy.drain.draining}
            return web.json_response(document, status=200 if good() else 503)

        return answer


def _from_this_pod(request: web.Request) -> bool:
    """Whether the peer is on loopback: anybody in the cluster can reach this port, and none of them may stop a pod."""
    try:
        return ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        return False


def _read(path: Path | None) -> bytes | None:
    """The report; None while it is absent or, as it is written at once, not a whole document."""
    try:
        content = None if path is None else path.read_bytes()
        json.loads(content or b"")
    except (OSError, ValueError):
        return None
    return content
