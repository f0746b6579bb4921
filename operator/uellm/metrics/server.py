"""GET /metrics over HTTP."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from uellm.errors import CannotBeDone

PATH = "/metrics"
# The text format that every Prometheus reads.
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_route(registry: CollectorRegistry) -> web.RouteDef:
    """The route that shows a registry."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": _CONTENT_TYPE})

    return web.get(PATH, answer)


class MetricsServer:
    """Serves a registry, and nothing else. An async context manager. Raises CannotBeDone where the port is taken."""

    def __init__(self, host: str | None, port: int, registry: CollectorRegistry) -> None:
        self._address = (host, port)
        app = web.Application()
        app.add_routes([metrics_route(registry)])
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> MetricsServer:
        await self._runner.setup()
        host, port = self._address
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            where = f"{host or 'all addresses'} port {port}"
            raise CannotBeDone(f"metrics: cannot listen on {where}: {error.strerror}; choose another port") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._runner.addresses[0][1])
