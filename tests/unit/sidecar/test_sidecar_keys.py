"""API keys and allowed routes, through the sidecar."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from uellm.proxying.routes import SEARCH

KEYED = {"classes": [{"name": "a", "ttft": "1s"}]}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """In the kubelet's layout of a Secret: the names point through `..data`, which is replaced as a whole."""
    directory = tmp_path / "keys"
    directory.mkdir()
    put(directory, "v1", team="sk-team-a\n", other="\n  sk-one \nsk-two\n")
    return directory


def put(directory: Path, version: str, **files: str) -> None:
    data = directory / f"..{version}"
    data.mkdir()
    for name, text in files.items():
        (data / name).write_text(text)
        link = directory / name
        if not link.is_symlink():
            link.symlink_to(Path("..data") / name)
    swap = directory / "..data_tmp"
    swap.symlink_to(data.name)
    swap.rename(directory / "..data")


@pytest.fixture
async def keyed(launch, secret) -> Any:
    return await launch(KEYED | {"auth": {"keysDirectory": str(secret)}})


async def status(harness: Any, key: str | None, path: str = "/v1/chat/completions") -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with harness.post(path=path, **headers) as response:
        return int(response.status)


async def test_any_key_of_any_file_opens_every_route_and_nothing_else_does(engine, keyed):
    for key in ("sk-team-a", "sk-one", "sk-two"):
        assert await status(keyed, key) == 200
    for key in (None, "sk-team-b", "", "team"):
        for path in ("/v1/chat/completions", "/v1/models", "/tokenize", "/made/up", "/v1/realtime"):
            assert await status(keyed, key, path) == 401
    assert len(engine.received) == 3
    async with keyed.client.get(keyed.url("/health")) as response:
        assert response.status == 200


async def test_requests_that_are_not_scheduled_are_told_as_use_but_for_refused_ones_and_what_monitors_poll(keyed):
    for path in ("/tokenize", "/v1/audio/speech"):
        assert await status(keyed, "sk-one", path) == 200
    assert await status(keyed, None, "/tokenize") == 401
    assert await status(keyed, "sk-one", "/sleep") == 403
    polled = ("/", "/health", "/version", "/metrics", "/load", "/v1/models", "/v1/models/m", "/docs", "/openapi.json")
    for path in polled:
        async with keyed.client.get(keyed.url(path), headers={"Authorization": "Bearer sk-one"}) as response:
            assert response.status == 200
    load = keyed.sidecar.proxy.attainment().load
    assert (load.passed, load.ended) == (2, 0)


async def test_requests_that_are_not_scheduled_are_no_use_where_the_engine_refuses_them_or_is_away(engine, keyed):
    async def refuse(request: web.Request, _: object) -> web.Response:
        return web.Response(status=400 if request.path == "/tokenize" else 404)

    engine.script = refuse
    for path, refused in (("/tokenize", 400), ("/healthz", 404), ("/favicon.ico", 404)):
        assert await status(keyed, "sk-one", path) == refused
    await engine.stop()
    assert await status(keyed, "sk-one", "/tokenize") == 503
    assert keyed.sidecar.proxy.attainment().load.passed == 0


async def test_only_a_search_for_a_kept_response_may_say_that_it_is_no_use(keyed):
    for path, passed in (("/v1/responses/resp_1", 0), ("/v1/audio/speech", 1)):
        headers = {"Authorization": "Bearer sk-one", SEARCH: "1"}
        method = keyed.client.get if path.startswith("/v1/responses") else keyed.client.post
        async with method(keyed.url(path), headers=headers) as response:
            assert response.status == 200
        assert keyed.sidecar.proxy.attainment().load.passed == passed


async def test_a_poll_is_no_use_while_it_runs_either(engine, keyed):
    passing = []

    async def look(*_: object) -> web.Response:
        passing.append(keyed.sidecar.proxy.attainment().load.passing)
        return web.Response()

    engine.script = look
    for path in ("/v1/models", "/tokenize"):
        assert await status(keyed, "sk-one", path) == 200
    assert passing == [0, 1]


async def test_a_refusal_is_in_openais_form_and_is_counted(keyed):
    async with keyed.post(Authorization="Bearer sk-planted") as response:
        document = await response.json()
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.headers["x-uellm-outcome"] == "unauthorized"
    assert (document["error"]["type"], document["error"]["code"]) == ("authentication_error", "unauthorized")
    assert keyed.outcomes() == {"unauthorized": 1}


async def test_keys_are_added_and_removed_while_it_runs(keyed, secret):
    put(secret, "v2", team="sk-new\n", other="")
    keyed.sidecar.reload()
    assert await status(keyed, "sk-new") == 200
    assert await status(keyed, "sk-team-a") == 401


async def test_without_any_key_every_request_is_refused(launch, tmp_path):
    harness = await launch(KEYED | {"auth": {"keysDirectory": str(tmp_path / "absent")}})
    assert await status(harness, "anything") == 401


async def test_no_key_gets_into_a_log_or_a_metric(keyed, caplog):
    with caplog.at_level(logging.DEBUG):
        await status(keyed, "sk-team-a")
        await status(keyed, "sk-planted-wrong")
        async with keyed.client.get(keyed.management("/metrics")) as response:
            metrics = await response.text()
    assert "sk-" not in metrics + caplog.text


async def test_an_administrative_route_is_served_where_the_configuration_says_so(engine, launch):
    harness = await launch(KEYED | {"allowedRoutes": ["/sleep"]})
    assert await status(harness, None, "/sleep") == 200
    for path in ("/wake_up", "/fault_tolerance/apply", "/inference/v1/abort_requests", "/kv_event_sources"):
        assert await status(harness, None, path) == 403
    assert [received.path for received in engine.received] == ["/sleep"]
