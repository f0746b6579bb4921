"""GET /healthz: whether this process works; GET /readyz: whether it has started to; GET /metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry

from uellm.metrics.server import metrics_route

PATH = "/healthz"
READY_PATH = "/readyz"


class ProbeServer:
    """Serves named checks; each returns None, or what is wrong. An async context manager.

    It reports ready once `ready()` is true, so that an installation waits until the operator watches the cluster.
    `host`: None for every address of the machine.
    """

    def __init__(
        self,
        host: str | None,
        port: int,
        checks: Mapping[str, Callable[[], str | None]],
        ready: Callable[[], bool],
        registry: CollectorRegistry,
    ) -> None:
        self._checks = checks
        self._ready = ready
        self._address = (host, port)
        app = web.Application()
        app.add_routes([web.get(PATH, self._answer), web.get(READY_PATH, self._answer_ready), metrics_route(registry)])
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> ProbeServer:
        await self._runner.setup()
        await web.TCPSite(self._runner, *self._address).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def problems(self) -> dict[str, str]:
        """What is wrong, by name of the check."""
        answers = {name: check() for name, check in self._checks.items()}
        return {name: answer for name, answer in answers.items() if answer}

    async def _answer(self, request: web.Request) -> web.Response:
        problems = self.problems()
        return web.json_response(problems or {"status": "ok"}, status=500 if problems else 200)

    async def _answer_ready(self, request: web.Request) -> web.Response:
        if not self._ready():
            return web.json_response({"status": "waiting for the API server or for the first lists"}, status=503)
        return await self._answer(request)
