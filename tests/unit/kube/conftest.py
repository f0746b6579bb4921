"""A scripted API server on a loopback socket, and a client of it."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from aiohttp import web

from uellm.kube import Kube, watch

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ScriptedServer:
    """Answers the n-th request with the n-th answer of the script, and further ones with the last."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.requests: list[web.Request] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self.script[min(len(self.requests), len(self.script)) - 1](request)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", scripted.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    scripted.port = runner.addresses[0][1]
    yield scripted
    await runner.cleanup()


def write_kubeconfig(path: Path, port: int, token: str = "first") -> str:
    name = {"name": "c"}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{**name, "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{**name, "user": {"token": token}}],
        "contexts": [{**name, "context": {"cluster": "c", "user": "c"}}],
        "current-context": "c",
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


@pytest.fixture
def kubeconfig(server: ScriptedServer, tmp_path: Path) -> str:
    return write_kubeconfig(tmp_path / "kubeconfig", server.port)


@pytest.fixture
async def kube(kubeconfig: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kube]:
    monkeypatch.setattr(watch, "FIRST_DELAY_S", 0.0001)
    async with await Kube.connect(kubeconfig=kubeconfig) as client:
        yield client


def says(document: object, status: int = 200, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=json.dumps(document), content_type="application/json", headers=headers)

    return answer


def refuses(status: int, reason: str = "", message: str = "no", **headers: str) -> Answer:
    document = {"kind": "Status", "code": status, "reason": reason, "message": message}
    return says(document, status, **headers)


def lists(version: str, *objects: dict) -> Answer:
    document = {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": version}}
    return says({**document, "items": list(objects)})


def streams(*events: tuple[str, dict], then: Callable[[], Awaitable[object]] | None = None) -> Answer:
    """A watch that sends these events, waits for `then`, and ends."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for kind, obj in events:
            await response.write(json.dumps({"type": kind, "object": obj}).encode() + b"\n")
        if then is not None:
            await then()
        await response.write_eof()
        return response

    return answer


def config_map(name: str, version: str, **data: str) -> dict:
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": version}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


@pytest.fixture
def scripts() -> SimpleNamespace:
    """The answers above, as a fixture: test modules cannot import a conftest under importlib mode."""
    return SimpleNamespace(
        says=says,
        refuses=refuses,
        lists=lists,
        streams=streams,
        config_map=config_map,
        write_kubeconfig=write_kubeconfig,
    )


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that nobody listens on: bound, so that nobody else takes it, but not listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
