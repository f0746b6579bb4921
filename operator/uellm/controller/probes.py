"""GET /healthz: whether this process works; GET /readyz: whether it has started to; GET /metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry

from uellm.metrics.server import metrics_route

PATH = "/healthz"
READY_PATH = "/readyz"

Check = Callable[[], str | None]
"""None, or what is wrong."""


def probes_app(checks: Mapping[str, Check], ready: Callable[[], bool], registry: CollectorRegistry) -> web.Application:
    """The probes over named checks, and the metrics.

    It reports ready once `ready()` is true, so that an installation waits until the operator watches the cluster.
    """

    async def answer(_: web.Request) -> web.Response:
        answers = {name: check() for name, check in checks.items()}
        problems = {name: problem for name, problem in answers.items() if problem}
        return web.json_response(problems or {"status": "ok"}, status=500 if problems else 200)

    async def answer_ready(request: web.Request) -> web.Response:
        if not ready():
            return web.json_response({"status": "waiting for the API server or for the first lists"}, status=503)
        return await answer(request)

    app = web.Application()
    app.add_routes([web.get(PATH, answer), web.get(READY_PATH, answer_ready), metrics_route(registry)])
    return app
