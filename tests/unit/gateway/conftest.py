"""A gateway on real sockets, in front of scripted engines or of real sidecars in front of these."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from yarl import URL

from helpers.fake_engine import FakeEngine, eventually
from uellm.gateway.catalog import Service, ServiceKey
from uellm.gateway.fleet import Fleet
from uellm.gateway.process import Gateway, GatewayOptions
from uellm.gateway.replicas import ReplicaAddress
from uellm.http import EngineAddress
from uellm.proxying.keys import Keys
from uellm.proxying.process import Address
from uellm.sidecar.process import Sidecar, SidecarOptions

CHAT = "/v1/chat/completions"
ANYWHERE = Address("127.0.0.1", 0)


@dataclass
class ScriptedView:
    """A view that a test fills itself."""

    fleet: Fleet
    complete: bool = True
    refused: set[str] = field(default_factory=set)
    wanted: list[ServiceKey] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    keys_of: dict[ServiceKey, Keys] = field(default_factory=dict)

    def age_s(self) -> float:
        return 0.0

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def want(self, service: Service) -> None:
        self.wanted.append(service.key)
        self.asked.set()

    async def keys(self, service: Service) -> Keys | None:
        return self.keys_of.get(service.key)


@dataclass
class Harness:
    """A running gateway and a client of it."""

    gateway: Gateway
    client: aiohttp.ClientSession
    view: ScriptedView

    def serve(self, name: str, *ports: int, namespace: str = "default", **facts: Any) -> Service:
        """Make a service known, with replicas at these ports."""
        service = Service(ServiceKey(namespace, name), facts.pop("names", (name,)), **facts)
        self.gateway.fleet.put(service)
        self.place(service, *ports)
        return service

    def place(self, service: Service, *ports: int) -> None:
        self.gateway.fleet.place(service.key, [ReplicaAddress("127.0.0.1", port) for port in ports])

    def place_sidecars(self, service: Service, *sidecars: Sidecar) -> None:
        """With their loads."""
        addresses = [ReplicaAddress("127.0.0.1", sidecar.port, sidecar.metrics_port) for sidecar in sidecars]
        self.gateway.fleet.place(service.key, addresses)

    def url(self, path: str) -> URL:
        """An address that the client sends unchanged."""
        return URL(f"http://127.0.0.1:{self.gateway.port}{path}", encoded=True)

    def management(self, path: str) -> URL:
        return URL(f"http://127.0.0.1:{self.gateway.metrics_port}{path}", encoded=True)

    def post(self, model: str | bytes = "llama", *, path: str = CHAT, **headers: str) -> Any:
        """Ask for a model, or send these bytes."""
        body = model if isinstance(model, bytes) else json.dumps({"model": model}).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(self.url(path), data=body, headers={"Content-Type": "application/json", **named})

    def ask(self, model: str | bytes = "llama", **headers: str) -> asyncio.Task[tuple[int, bytes]]:
        """Send a request in its own task: its status and body."""

        async def run() -> tuple[int, bytes]:
            async with self.post(model, **headers) as response:
                return response.status, await response.read()

        return asyncio.create_task(run())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.gateway.port)

    async def raw(self, data: bytes) -> bytes:
        """Send these bytes and read until the gateway closes the connection."""
        reader, writer = await self.connect()
        writer.write(data)
        answer = await reader.read()
        writer.close()
        return answer

    async def figures(self) -> str:
        async with self.client.get(self.management("/metrics")) as response:
            return await response.text()

    def outcomes(self) -> dict[str, int]:
        """Every outcome counted so far."""
        found: dict[str, int] = {}
        for (_, _, outcome), count in self.gateway.figures.requests._values.items():
            found[outcome] = found.get(outcome, 0) + int(count)
        return found


Launch = Callable[..., Awaitable[Harness]]


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    """Starts gateways."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Harness:
            views: list[ScriptedView] = []

            def view_of(fleet: Fleet) -> ScriptedView:
                views.append(ScriptedView(fleet))
                return views[0]

            defaults: dict[str, Any] = {"listen": ANYWHERE, "metrics_listen": ANYWHERE, "lame_duck_s": 0.0}
            gateway = await stack.enter_async_context(Gateway(GatewayOptions(**defaults | options), view_of))
            client = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
            return Harness(gateway, client, views[0])

        yield start


@pytest.fixture
async def harness(launch: Launch) -> Harness:
    return await launch()


@pytest.fixture
async def engines() -> AsyncIterator[Callable[..., Awaitable[FakeEngine]]]:
    """Starts scripted engines."""
    async with AsyncExitStack() as stack:

        async def start() -> FakeEngine:
            fake = FakeEngine()
            await fake.start()
            stack.push_async_callback(fake.end)
            return fake

        yield start


@pytest.fixture
async def sidecars(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Sidecar]]]:
    """Starts sidecars in front of engines."""
    async with AsyncExitStack() as stack:

        async def start(
            engine: EngineAddress,
            *,
            keys: str = "",
            service: str = "",
            model: str = "",
            adapters: Sequence[str] = (),
            **options: Any,
        ) -> Sidecar:
            folder = tmp_path / str(engine.port)
            folder.mkdir()
            document: dict[str, Any] = {"classes": [{"name": "interactive", "ttft": "1s"}]}
            if service:
                document["service"] = service
            if model:
                document |= {"model": model, "engine": {"loadsAdapters": True}}
                document["adapters"] = [{"name": name, "path": f"/adapters/{name}"} for name in adapters]
            if keys:
                (folder / "keys").mkdir()
                (folder / "keys" / "key").write_text(keys)
                document["auth"] = {"keysDirectory": str(folder / "keys")}
            (folder / "sidecar.yaml").write_text(yaml.safe_dump(document))
            given = {"engine_poll_s": 0.02, "engine_poll_away_s": 0.02, "lame_duck_s": 0.0} | options
            sidecar = Sidecar(
                SidecarOptions(ANYWHERE, engine, folder / "sidecar.yaml", metrics_listen=ANYWHERE, **given)
            )
            await stack.enter_async_context(sidecar)
            await eventually(lambda: sidecar.engine.ready)
            return sidecar

        yield start
