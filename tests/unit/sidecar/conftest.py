"""A sidecar on real sockets in front of a scripted server that stands in for vLLM's HTTP server only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from yarl import URL

from uellm import drain_token
from uellm.http import EngineAddress, ServerConnection
from uellm.sidecar.process import Address, Sidecar, SidecarOptions

TWO_CLASSES = {
    "model": "tiny",
    "classes": [{"name": "interactive", "priority": 10, "ttft": "1s"}, {"name": "batch", "e2e": "60s"}],
}
CHAT = "/v1/chat/completions"


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
        self.port = 0
        self.healthy = True
        self.health_checks = 0
        self.received: list[Received] = []
        self.arrivals: asyncio.Queue[Received] = asyncio.Queue()
        self.metrics = ""
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
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, request: web.Request) -> web.Response:
        self.health_checks += 1
        return web.Response(status=200 if self.healthy else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
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


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    fake = FakeEngine()
    await fake.start()
    yield fake
    await fake.stop()


@dataclass
class Harness:
    """A running sidecar and a client of it."""

    sidecar: Sidecar
    client: aiohttp.ClientSession
    config: Path

    def url(self, path: str) -> URL:
        """An address that the client sends unchanged."""
        return URL(f"http://127.0.0.1:{self.sidecar.port}{path}", encoded=True)

    def management(self, path: str) -> URL:
        return URL(f"http://127.0.0.1:{self.sidecar.metrics_port}{path}", encoded=True)

    def drain(self) -> Any:
        """What the engine's preStop hook asks for."""
        (self.config.parent / drain_token.FILE).write_text("secret")
        return self.client.post(self.management("/uellm/drain"), headers={drain_token.HEADER: "secret"})

    def post(self, body: bytes = b"{}", *, path: str = CHAT, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(self.url(path), data=body, headers={"Content-Type": "application/json", **named})

    def ask(self, body: bytes = b"{}", **headers: str) -> asyncio.Task[tuple[int, bytes]]:
        """Send a request in its own task: its status and body."""

        async def run() -> tuple[int, bytes]:
            async with self.post(body, **headers) as response:
                return response.status, await response.read()

        return asyncio.create_task(run())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.sidecar.port)

    async def raw(self, data: bytes) -> bytes:
        """Send these bytes and read until the sidecar closes the connection."""
        reader, writer = await self.connect()
        writer.write(data)
        answer = await reader.read()
        writer.close()
        return answer

    def configure(self, document: dict[str, Any] | str) -> None:
        text = document if isinstance(document, str) else yaml.safe_dump(document)
        replacement = self.config.with_suffix(".new")
        replacement.write_text(text)
        replacement.rename(self.config)

    def connections(self) -> set[ServerConnection]:
        """The sidecar's end of its clients' connections."""
        return self.sidecar.connections

    def outcomes(self) -> dict[str, int]:
        """Every outcome counted so far."""
        found: dict[str, int] = {}
        for (_, _, outcome), count in self.sidecar.figures.requests._values.items():
            found[outcome] = found.get(outcome, 0) + int(count)
        return found


async def eventually(holds: Callable[[], Any], within_s: float = 5.0) -> None:
    """Wait for a state that has no event."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - what a socket's other end knows has no event on this one
            await asyncio.sleep(0.005)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., Awaitable[None]]:
    return eventually


Launch = Callable[..., Awaitable[Harness]]


@pytest.fixture
async def launch(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Launch]:
    """Starts sidecars in front of the engine, and waits until they know that it is ready."""
    async with AsyncExitStack() as stack:

        async def start(document: dict[str, Any] | None = None, *, ready: bool = True, **options: Any) -> Harness:
            config = tmp_path / "sidecar.yaml"
            config.write_text(yaml.safe_dump(TWO_CLASSES if document is None else document))
            anywhere = Address("127.0.0.1", 0)
            defaults: dict[str, Any] = {
                "listen": anywhere,
                "metrics_listen": anywhere,
                "engine": engine.address,
                "config": config,
                "placement": tmp_path / "placement.json",
                "engine_poll_s": 0.02,
                "engine_poll_away_s": 0.02,
                "config_poll_s": 3600.0,
                "lame_duck_s": 0.0,
            }
            sidecar = await stack.enter_async_context(Sidecar(SidecarOptions(**defaults | options)))
            client = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
            if ready:
                await eventually(lambda: sidecar.engine.ready)
            return Harness(sidecar, client, config)

        yield start


@pytest.fixture
async def harness(launch: Launch) -> Harness:
    return await launch()


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that nobody listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
