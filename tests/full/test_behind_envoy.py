"""Sidecars behind the real Envoy, with what Envoy Gateway makes of the chart's HTTPRoute, and with Istio's retries.

Engines are scripted. What docs/how-to/behind-a-proxy.md says of Envoy is tried here.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from helpers import envoy
from helpers.envoy import Document
from helpers.fake_engine import FakeEngine, eventually
from uellm.proxying.process import Address
from uellm.sidecar.process import Sidecar, SidecarOptions
from uellm_devcluster.binaries import ensure

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "behind-a-proxy.md"
HOST = "models.example.com"
CHAT = "/v1/chat/completions"
STREAM = b'{"stream": true, "messages": []}'
EVENT, DONE = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n', b"data: [DONE]\n\n"


def chart() -> list[Document]:
    """The chart's Service and HTTPRoute of the gateway. The Service has its address in the cluster."""
    values = {"httpRoute": {"enabled": True, "parentRefs": [envoy.GATEWAY], "hostnames": [HOST]}}
    command = [str(ensure({"helm"}) / "helm"), "template", "uellm", str(ROOT / "charts" / "uellm")]
    command += ["--namespace", "uellm-system", "--show-only", "templates/gateway.yaml", "--values", "-"]
    done = subprocess.run(
        command, input=yaml.safe_dump({"gateway": values}), capture_output=True, text=True, check=True
    )
    documents = [each for each in yaml.safe_load_all(done.stdout) if each]
    (service,) = [each for each in documents if each["kind"] == "Service"]
    (route,) = [each for each in documents if each["kind"] == "HTTPRoute"]
    service["spec"]["clusterIP"] = "10.96.0.77"
    return [service, route]


def documented(kind: str) -> Document:
    """The only document of a kind on the page."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (found,) = [each for block in blocks if f"kind: {kind}\n" in block for each in [yaml.safe_load(block)]]
    return dict(found)


def with_istios_retries(parts: dict[str, Document], *further: str) -> dict[str, Document]:
    """Envoy's policy for the `retries` of the page's VirtualService, as Istio writes it. `further`: causes besides."""
    retries = documented("VirtualService")["spec"]["http"][0]["retries"]
    words = [*retries["retryOn"].split(","), *further]
    codes = [int(word) for word in words if word.isdecimal()]
    named = [word for word in words if not word.isdecimal()]
    previous = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    (route,) = parts["routes"]["virtualHosts"][0]["routes"]
    route["route"]["retryPolicy"] = {
        "retryOn": ",".join([*named, *(["retriable-status-codes"] if codes else [])]),
        "retriableStatusCodes": codes,
        "numRetries": retries["attempts"],
        "retryHostPredicate": [
            {"name": "envoy.retry_host_predicates.previous_hosts", "typedConfig": {"@type": previous}}
        ],
        "hostSelectionRetryMaxAttempts": "5",
    }
    return parts


@dataclass
class Mesh:
    """Envoy, the sidecars behind it, and their engines."""

    port: int
    engines: list[FakeEngine]
    sidecars: list[Sidecar]
    client: aiohttp.ClientSession

    def post(self, body: bytes = b"{}", path: str = CHAT, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(self.url(path), data=body, headers=self.headers(**named))

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def headers(self, **further: str) -> dict[str, str]:
        return {"Host": HOST, "Content-Type": "application/json", **further}

    @property
    def received(self) -> int:
        return sum(len(each.received) for each in self.engines)


Launch = Callable[..., Awaitable[Mesh]]


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Launch]:
    """`await behind(pods=1, documents=…, change=…)`: Envoy in front of that many sidecars."""
    async with AsyncExitStack() as stack:

        async def launch(
            *,
            pods: int = 1,
            documents: list[Document] | None = None,
            change: Callable[[dict[str, Document]], dict[str, Document]] = lambda parts: parts,
            **settings: Any,
        ) -> Mesh:
            engines = [FakeEngine() for _ in range(pods)]
            sidecars = [await sidecar(engine, settings) for engine in engines]
            parts = change(envoy.translated(documents or chart(), tmp_path))
            port = await stack.enter_async_context(envoy.running(parts, [each.port for each in sidecars], tmp_path))
            client = await stack.enter_async_context(aiohttp.ClientSession())
            return Mesh(port, engines, sidecars, client)

        async def sidecar(engine: FakeEngine, settings: dict[str, Any]) -> Sidecar:
            await engine.start()
            stack.push_async_callback(engine.end)
            config = tmp_path / f"sidecar-{engine.port}.yaml"
            config.write_text(yaml.safe_dump({"classes": [], **settings}))
            anywhere = Address("127.0.0.1", 0)
            options = SidecarOptions(
                listen=anywhere,
                metrics_listen=anywhere,
                engine=engine.address,
                config=config,
                placement=tmp_path / "placement.json",
                engine_poll_away_s=0.05,
                lame_duck_s=0.0,
            )
            running = await stack.enter_async_context(Sidecar(options))
            await eventually(lambda: running.engine.ready, 30)
            return running

        yield launch


async def test_a_stream_comes_event_by_event(behind):
    mesh = await behind()
    (engine,) = mesh.engines
    engine.script = engine.stream(EVENT, hold=True)
    async with mesh.post(STREAM) as response:
        assert await response.content.readuntil(b"\n\n") == EVENT
        engine.received[0].go_on.set()
        assert await response.read() == b""


async def test_headers_reach_the_sidecar_and_its_own_reach_the_client(behind):
    mesh = await behind(classes=[{"name": "batch", "e2e": "60s"}, {"name": "chat", "ttft": "1s"}])
    async with mesh.post(b'{"messages": []}', x_slo_class="chat") as response:
        assert (response.status, response.headers["x-uellm-class"]) == (200, "chat")


async def test_an_answer_may_begin_later_than_envoys_default_timeout(behind):
    mesh = await behind()
    (engine,) = mesh.engines
    engine.script = engine.on_word
    asked = asyncio.create_task(_status(mesh))
    await eventually(lambda: engine.received)
    answered, _ = await asyncio.wait({asked}, timeout=16.0)
    assert not answered
    engine.received[0].go_on.set()
    assert await asked == 200


async def test_a_route_without_the_charts_timeout_is_given_up_after_15_seconds(behind):
    service, route = chart()
    del route["spec"]["rules"][0]["timeouts"]
    mesh = await behind(documents=[service, route])
    (engine,) = mesh.engines
    engine.script = engine.on_word
    started_s = time.monotonic()
    assert await _status(mesh) == 504
    assert 14.0 < time.monotonic() - started_s < 25.0
    await asyncio.wait_for(engine.received[0].left.wait(), 10)


async def _status(mesh: Mesh) -> int:
    async with mesh.post() as response:
        return int(response.status)


@pytest.mark.parametrize("body", [b"{}", STREAM], ids=["whole", "stream"])
async def test_a_client_that_leaves_ends_the_request_at_the_engine(behind, body):
    mesh = await behind()
    (engine,) = mesh.engines
    engine.script = engine.stream(EVENT, hold=True) if body is STREAM else engine.on_word
    asked = asyncio.create_task(_read(mesh, body))
    await eventually(lambda: engine.received, 10)
    asked.cancel()
    await asyncio.wait_for(engine.received[0].left.wait(), 10)


async def _read(mesh: Mesh, body: bytes) -> bytes:
    async with mesh.post(body) as response:
        return await response.read()


async def test_a_large_body_passes(behind):
    mesh = await behind()
    body = b'{"messages": [], "user": "' + b"x" * (20 << 20) + b'"}'
    async with mesh.post(body) as response:
        assert (response.status, len(await response.read())) == (200, len(body))


async def test_a_websocket_passes(behind):
    mesh = await behind()
    (engine,) = mesh.engines

    async def echo(request: web.Request, received: object) -> web.WebSocketResponse:
        words = web.WebSocketResponse()
        await words.prepare(request)
        async for message in words:
            await words.send_str(message.data)
        return words

    engine.script = echo
    async with mesh.client.ws_connect(mesh.url("/v1/realtime"), headers={"Host": HOST}) as words:
        await words.send_str("hello")
        assert await words.receive_str() == "hello"


async def test_a_refusal_comes_once_and_with_its_retry_time(behind):
    mesh = await behind(engine={"maxNumSeqs": 1}, scheduling={"maxQueuedRequests": 1})
    (engine,) = mesh.engines
    engine.script = engine.on_word
    waiting = [asyncio.create_task(_status(mesh)) for _ in range(2)]
    await eventually(lambda: mesh.sidecars[0].dispatcher.queued == 1, 10)
    async with mesh.post() as response:
        assert response.status == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert response.headers["x-uellm-outcome"] == "queue_full"
    refused = mesh.sidecars[0].figures.requests
    assert sum(count for (*_, outcome), count in refused._values.items() if outcome == "queue_full") == 1
    for number in range(2):
        await eventually(lambda number=number: len(engine.received) > number, 10)
        engine.received[number].go_on.set()
    assert await asyncio.gather(*waiting) == [200, 200]


async def broken(request: web.Request, received: object) -> web.StreamResponse:
    """An engine that dies of the request."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def with_503(parts: dict[str, Document]) -> dict[str, Document]:
    return with_istios_retries(parts, "503")


@pytest.mark.parametrize("change", [lambda parts: parts, with_istios_retries], ids=["Envoy Gateway", "Istio"])
async def test_a_request_runs_once_though_its_engine_breaks(behind, change):
    mesh = await behind(pods=2, change=change)
    for engine in mesh.engines:
        engine.script = broken
    async with mesh.post() as response:
        assert (response.status, response.headers["x-uellm-outcome"]) == (503, "engine_lost")
    assert mesh.received == 1


async def test_where_503_is_retried_it_runs_twice(behind):
    mesh = await behind(pods=2, change=with_503)
    for engine in mesh.engines:
        engine.script = broken
    assert await _status(mesh) == 503
    assert mesh.received == 2


async def test_where_503_is_retried_another_pod_answers_for_one_that_drains(behind):
    mesh = await behind(pods=2, change=with_503)
    mesh.sidecars[0].proxy.drain.begin()
    assert [await _status(mesh) for _ in range(10)] == [200] * 10
    assert not mesh.engines[0].received
