"""A scripted server that stands in for vLLM's HTTP server only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from uellm.http import EngineAddress


@dataclass
class Received:
    """A request as the engine saw it. `left` is set when its connection closed before the answer was complete."""

    method: str
    path: str
    headers: Any
    body: bytes
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)


class FakeEngine:
    """Answers by `script`. It can be silent or unhealthy, and can be stopped and restarted on the same port."""

    def __init__(self) -> None:
        # Bound for as long as there is this engine: nobody else gets its port while it is stopped.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port: int = self._held.getsockname()[1]
        self.healthy = True
        self.health_checks = 0
        self.received: list[Received] = []
        self.arrivals: asyncio.Queue[Received] = asyncio.Queue()
        self.metrics = ""
        self.models: Any = {"data": []}
        """What it tells the sidecar of its models. Lists that clients ask for are the script's."""
        self.script: Callable[[web.Request, Received], Awaitable[web.StreamResponse]] = self.echo
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> EngineAddress:
        return EngineAddress("127.0.0.1", self.port)

    async def start(self) -> None:
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_get("/health", self._health)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            application,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_line_size=2**20,
            max_field_size=2**20,
            max_headers=2000,
            shutdown_timeout=0.01,
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Until it is started again nobody listens at its port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def end(self) -> None:
        """Stop for good."""
        await self.stop()
        self._held.close()

    async def _health(self, request: web.Request) -> web.Response:
        self.health_checks += 1
        return web.Response(status=200 if self.healthy else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models" and request.headers.keys() == {"Host", "Accept"}:
            return web.json_response(self.models)
        received = Received(request.method, request.raw_path, request.headers.copy(), await request.read())
        self.received.append(received)
        self.arrivals.put_nowait(received)
        try:
            return await self.script(request, received)
        except (asyncio.CancelledError, ConnectionError):
            received.left.set()
            raise

    @staticmethod
    async def echo(request: web.Request, received: Received) -> web.StreamResponse:
        return web.Response(body=received.body, content_type="application/json")

    @staticmethod
    async def on_word(request: web.Request, received: Received) -> web.StreamResponse:
        """Answer once the test signals it."""
        await received.go_on.wait()
        return web.Response(body=b"{}", content_type="application/json")

    @staticmethod
    def stream(*pieces: bytes, die: bool = False, hold: bool = False) -> Callable[..., Awaitable[web.StreamResponse]]:
        """An SSE answer of these pieces; then wait for the test's signal, or break the connection."""

        async def script(request: web.Request, received: Received) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            await response.prepare(request)
            for piece in pieces:
                await response.write(piece)
            if hold or die:
                await received.go_on.wait()
            if die:
                request.transport.abort()
            return response

        return script


async def eventually(holds: Callable[[], Any], within_s: float = 5.0) -> None:
    """Wait for a state that has no event."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - what a socket's other end knows has no event on this one
            await asyncio.sleep(0.005)
