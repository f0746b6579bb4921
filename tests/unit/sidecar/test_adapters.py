"""LoRA adapters are loaded and unloaded by the sidecar: a real one, before an engine that keeps a list as vLLM does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from uellm.http import EngineAddress
from uellm.pod_interface import ADAPTER_TOKEN_FILE, ADAPTER_TOKEN_HEADER

SQL = {"name": "sql", "source": "file:///adapters/sql", "path": "/adapters/sql"}
CHAT = {"name": "chat", "source": "file:///adapters/chat", "path": "/adapters/chat"}
ON_HUB = {"name": "hub", "source": "hf://org/hub@main", "repository": "org/hub", "commit": "1" * 40}


def configured(*adapters: dict[str, str], loads: bool = True) -> dict[str, Any]:
    return {"model": "tiny", "classes": [], "engine": {"loadsAdapters": loads}, "adapters": list(adapters)}


class Lists:
    """What vLLM keeps of adapters, behind its routes; some paths are refused."""

    def __init__(self) -> None:
        self.served: dict[str, str] = {}
        self.refused: set[str] = set()
        self.loads: list[dict[str, Any]] = []
        self.may_unload = asyncio.Event()
        self.may_unload.set()

    async def __call__(self, request: web.Request, received: Any) -> web.StreamResponse:
        if request.path == "/v1/models":
            cards = [{"id": name, "root": path, "parent": "tiny"} for name, path in self.served.items()]
            return web.json_response({"data": [{"id": "tiny", "root": "tiny", "parent": None}, *cards]})
        body = json.loads(received.body or b"{}")
        if request.path == "/v1/load_lora_adapter":
            self.loads.append(body)
            if body["lora_path"] in self.refused:
                return web.json_response({"error": {"message": "LoRA rank 64 is greater than 8"}}, status=500)
            if body["lora_name"] in self.served and not body["load_inplace"]:
                return web.json_response({"error": {"message": "has already been loaded"}}, status=400)
            self.served[body["lora_name"]] = body["lora_path"]
            return web.Response(text="Success")
        if request.path == "/v1/unload_lora_adapter":
            await self.may_unload.wait()
            del self.served[body["lora_name"]]
            return web.Response(text="Success")
        return web.json_response({"model": body.get("model")})


@pytest.fixture
def lists(engine) -> Lists:
    found = Lists()
    engine.script = found
    return found


def take_over(harness: Any, *adapters: dict[str, str]) -> None:
    harness.configure(configured(*adapters))
    harness.sidecar.reload()


async def report(harness: Any) -> dict[str, Any]:
    async with harness.client.get(harness.management("/uellm/running")) as answer:
        found: dict[str, Any] = await answer.json()
        return found


async def test_requests_wait_until_a_new_engine_has_its_adapters(engine, lists, launch, eventually):
    engine.healthy = False
    harness = await launch(configured(SQL, CHAT), ready=False)
    assert not lists.served
    engine.healthy = True
    await eventually(lambda: harness.sidecar.engine.ready)
    assert lists.served == {"sql": SQL["path"], "chat": CHAT["path"]}
    assert (await report(harness))["adapters"] == ["sql", "chat"]


async def test_adapters_are_added_replaced_and_removed_while_the_engine_runs(lists, launch, eventually):
    harness = await launch(configured(SQL))
    take_over(harness, {**SQL, "path": "/adapters/sql-2"}, CHAT)
    await eventually(lambda: lists.served == {"sql": "/adapters/sql-2", "chat": CHAT["path"]})
    assert [each["load_inplace"] for each in lists.loads] == [False, True, False]
    lists.may_unload.clear()
    take_over(harness)
    # The engine still serves what has not been unloaded, and the report says so.
    assert (await report(harness))["adapters"] == ["sql", "chat"]
    lists.may_unload.set()
    await eventually(lambda: not harness.sidecar.adapters.loaded)
    assert not lists.served
    assert "adapters" not in await report(harness)


async def test_a_renamed_adapter_is_served_under_its_new_name_alone(lists, launch, eventually):
    harness = await launch(configured(SQL))
    take_over(harness, {**SQL, "name": "queries"})
    await eventually(lambda: harness.sidecar.adapters.loaded == ("queries",))
    assert lists.served == {"queries": SQL["path"]}
    assert (await report(harness))["adapters"] == ["queries"]


async def test_an_engine_that_restarts_gets_them_again_before_it_is_ready(engine, lists, launch, eventually):
    harness = await launch(configured(SQL))
    await engine.stop()
    await eventually(lambda: not harness.sidecar.engine.ready)
    lists.served.clear()
    await engine.start()
    await eventually(lambda: harness.sidecar.engine.ready)
    assert lists.served == {"sql": SQL["path"]}


async def test_what_the_engine_refuses_is_reported_with_its_reason_and_the_others_are_served(lists, launch):
    lists.refused.add(SQL["path"])
    harness = await launch(configured(SQL, CHAT))
    assert lists.served == {"chat": CHAT["path"]}
    found = await report(harness)
    assert found["adapters"] == ["chat"]
    assert found["failedAdapters"] == {"sql": "LoRA rank 64 is greater than 8"}
    async with harness.client.get(harness.management("/metrics")) as answer:
        metrics = await answer.text()
    assert 'uellm_adapter_served{adapter="sql"} 0' in metrics
    assert 'uellm_adapter_served{adapter="chat"} 1' in metrics


async def test_a_new_configuration_tries_what_was_refused_again(lists, launch, eventually):
    lists.refused.add(SQL["path"])
    harness = await launch(configured(SQL))
    lists.refused.clear()
    take_over(harness, SQL, CHAT)
    await eventually(lambda: set(lists.served) == {"sql", "chat"})
    assert "failedAdapters" not in await report(harness)


async def test_an_engine_without_room_for_adapters_is_asked_for_none(lists, launch):
    harness = await launch(configured(SQL, loads=False))
    assert lists.loads == []
    assert "failedAdapters" not in await report(harness)


async def test_an_adapter_of_a_hub_is_downloaded_by_the_engines_parent(lists, launch, tmp_path: Path):
    asked = []

    async def download(request: web.Request) -> web.Response:
        asked.append((request.headers[ADAPTER_TOKEN_HEADER], await request.json()))
        return web.json_response({"path": f"/cache/{'1' * 40}"})

    application = web.Application()
    application.router.add_post("/adapter", download)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        (tmp_path / ADAPTER_TOKEN_FILE).write_text("secret")
        await launch(configured(ON_HUB), engine_parent=EngineAddress("127.0.0.1", runner.addresses[0][1]))
    finally:
        await runner.cleanup()
    assert asked == [("secret", {"repository": "org/hub", "commit": "1" * 40})]
    assert lists.served == {"hub": f"/cache/{'1' * 40}"}


async def test_an_engine_waits_a_while_for_an_adapter_that_cannot_be_downloaded(lists, launch, eventually):
    harness = await launch(configured(ON_HUB, SQL), ready=False)
    await eventually(lambda: "sql" in lists.served)
    assert not harness.sidecar.engine.ready
    harness.sidecar.adapters.patience_s = 0.0
    await eventually(lambda: harness.sidecar.engine.ready)
    assert "downloads adapters" in (await report(harness))["failedAdapters"]["hub"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/v1/%6coad_lora_adapter"),
        ("POST", "/adapters"),
        ("DELETE", "/adapters/sql"),
    ],
)
async def test_clients_can_neither_load_nor_unload(lists, launch, method, path):
    harness = await launch(configured())
    async with harness.client.request(method, harness.url(path)) as answer:
        assert answer.status == 403
    assert not lists.loads


async def test_a_request_for_an_adapter_reaches_the_engine_with_its_name(lists, launch):
    harness = await launch(configured(SQL))
    async with harness.post(b'{"model": "sql", "messages": []}') as answer:
        assert await answer.json() == {"model": "sql"}
    async with harness.post(b'{"model": "tiny", "messages": []}') as answer:
        assert await answer.json() == {"model": "tiny"}
    async with harness.client.get(harness.management("/metrics")) as answer:
        counted = [line for line in (await answer.text()).splitlines() if "adapter_requests_total{" in line]
    assert counted == ['uellm_adapter_requests_total{adapter="sql",outcome="completed"} 1']


async def test_answers_of_adapters_are_predicted_apart(lists, launch):
    harness = await launch(configured(SQL))
    asked = []
    predict = harness.sidecar.lengths.predict
    harness.sidecar.lengths.predict = lambda question, now_s: (
        asked.append(question.template),
        predict(question, now_s),
    )[1]
    for model in ("tiny", "sql", "sql"):
        body = {"model": model, "messages": [{"role": "user", "content": "How?"}]}
        async with harness.post(json.dumps(body).encode()) as answer:
            await answer.read()
    assert asked[0] != asked[1] == asked[2]
