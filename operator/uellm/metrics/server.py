"""The HTTP listeners of operator, extender and profiler, and the route that shows a registry."""

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


def metrics_app(registry: CollectorRegistry) -> web.Application:
    """An application that shows a registry, and nothing else."""
    app = web.Application()
    app.add_routes([metrics_route(registry)])
    return app


class WebListener:
    """Serves an application at one address. An async context manager. Raises CannotBeDone where the port is taken.

    `host`: None for every address of the machine; `port` 0: any free one. `purpose` begins the error. `grace_s`: how
    long open requests may take at the end.
    """

    def __init__(
        self, app: web.Application, host: str | None, port: int, *, purpose: str, grace_s: float = 1.0
    ) -> None:
        self._address = (host, port)
        self._purpose = purpose
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=grace_s)

    async def __aenter__(self) -> WebListener:
        await self._runner.setup()
        host, port = self._address
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            where = f"{host or 'all addresses'} port {port}"
            raise CannotBeDone(
                f"{self._purpose}: cannot listen on {where}: {error.strerror}; choose another port"
            ) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._runner.addresses[0][1])
