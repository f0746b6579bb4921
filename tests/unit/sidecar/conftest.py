"""A sidecar on real sockets in front of a scripted server that stands in for vLLM's HTTP server only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from yarl import URL

from helpers.fake_engine import FakeEngine, eventually
from uellm import drain_token
from uellm.http import ServerConnection
from uellm.proxying.process import Address
from uellm.sidecar.process import Sidecar, SidecarOptions

TWO_CLASSES = {
    "model": "tiny",
    "classes": [{"name": "interactive", "priority": 10, "ttft": "1s"}, {"name": "batch", "e2e": "60s"}],
}
CHAT = "/v1/chat/completions"


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    fake = FakeEngine()
    await fake.start()
    yield fake
    await fake.end()


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
