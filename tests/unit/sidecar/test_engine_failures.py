"""The engine starts late, fails, stops and returns. Requests wait or get an error, and none runs twice."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import ClientPayloadError, web

from uellm.sidecar.engine.connection import EngineHealth
from uellm.sidecar.scheduling import scheduler


async def test_requests_wait_for_an_engine_that_is_still_starting(engine, launch, eventually):
    await engine.stop()
    harness = await launch(ready=False)
    asked = harness.ask(b"early")
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    assert harness.sidecar.engine.health is EngineHealth.STARTING
    await engine.start()
    assert await asked == (200, b"early")


async def test_requests_wait_during_a_restart_of_the_engine(engine, harness, eventually):
    await engine.stop()
    asked = [harness.ask(b"%d" % number) for number in range(5)]
    await eventually(lambda: harness.sidecar.dispatcher.queued == 5)
    assert harness.sidecar.engine.health is EngineHealth.GONE
    await engine.start()
    assert sorted(await asyncio.gather(*asked)) == [(200, b"%d" % number) for number in range(5)]
    assert len(engine.received) == 5


async def test_an_engine_that_does_not_return_is_reported_with_the_time_to_retry(engine, harness, monkeypatch):
    monkeypatch.setattr(scheduler, "ENGINE_WAIT_S", 0.1)
    await engine.stop()
    async with harness.post() as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["error"]["code"] == "engine_unavailable"


async def test_a_failed_dispatch_does_not_count_as_the_end_of_the_wait(engine, launch, monkeypatch):
    monkeypatch.setattr(scheduler, "ENGINE_WAIT_S", 0.1)
    harness = await launch(engine_poll_s=3600.0)
    await engine.stop()
    async with harness.post() as response:
        assert response.status == 503
        assert "x-uellm-queue-ms" not in response.headers


async def test_unscheduled_routes_fail_at_once_while_the_engine_is_unavailable(engine, harness):
    await engine.stop()
    async with harness.client.get(harness.url("/v1/models")) as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "engine_unavailable"


async def test_nothing_is_sent_to_an_engine_that_reports_itself_unhealthy(engine, harness, eventually):
    engine.healthy = False
    await eventually(lambda: harness.sidecar.engine.health is EngineHealth.UNHEALTHY)
    asked = harness.ask()
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    assert engine.received == []
    engine.healthy = True
    assert (await asked)[0] == 200


async def test_a_request_that_the_engine_died_with_is_not_sent_again(engine, harness):
    async def die(request, received):
        request.transport.abort()
        return web.Response()

    engine.script = die
    async with harness.post() as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "engine_lost"
    assert len(engine.received) == 1


async def test_a_stream_that_breaks_ends_with_an_error_event_and_no_done(engine, harness):
    engine.script = engine.stream(b'data: {"n": 1}\n\n', die=True)
    async with harness.post() as response:
        assert await response.content.readany() == b'data: {"n": 1}\n\n'
        (await engine.arrivals.get()).go_on.set()
        rest = await response.read()
    assert b"[DONE]" not in rest
    assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "engine_lost"
    assert rest.endswith(b"\n\n")
    assert harness.outcomes() == {"engine_lost": 1}


async def test_a_broken_stream_triggers_a_health_check_at_once(engine, launch, eventually):
    harness = await launch(engine_poll_s=3600.0)
    engine.script = engine.stream(b"data: 1\n\n", die=True)
    async with harness.post() as response:
        await response.content.readany()
        engine.healthy = False
        (await engine.arrivals.get()).go_on.set()
        await response.read()
    await eventually(lambda: harness.sidecar.engine.health is EngineHealth.UNHEALTHY)


async def test_an_event_that_was_cut_in_two_does_not_swallow_the_error(engine, harness):
    engine.script = engine.stream(b'data: {"n": 1}\n', b'\ndata: {"n"', die=True)
    async with harness.post() as response:
        await response.content.readexactly(len(b'data: {"n": 1}\n\ndata: {"n"'))
        (await engine.arrivals.get()).go_on.set()
        *_, last, empty = (await response.read()).split(b"\n\n")
    assert "error" in json.loads(last.removeprefix(b"data: "))
    assert empty == b""


async def test_anthropics_clients_get_their_own_kind_of_error_event(engine, harness):
    engine.script = engine.stream(b"event: ping\ndata: {}\n\n", die=True)
    async with harness.post(path="/v1/messages") as response:
        await response.content.readany()
        (await engine.arrivals.get()).go_on.set()
        rest = await response.read()
    assert rest.startswith(b"event: error\ndata: ")
    assert json.loads(rest.partition(b"data: ")[2])["type"] == "error"


async def test_any_other_truncated_answer_is_visibly_incomplete(engine, harness):
    async def half(request, received):
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"half":')
        await received.go_on.wait()
        request.transport.abort()
        return response

    engine.script = half
    async with harness.post() as response:
        assert await response.content.readany() == b'{"half":'
        (await engine.arrivals.get()).go_on.set()
        with pytest.raises(ClientPayloadError):
            await response.read()
    assert harness.outcomes() == {"engine_lost": 1}


@pytest.mark.parametrize(("status", "outcome"), [(400, "rejected_by_engine"), (500, "failed_by_engine")])
async def test_the_engines_own_errors_pass_unchanged(engine, harness, status, outcome):
    async def fail(request, received):
        return web.json_response({"error": {"message": "no"}}, status=status)

    engine.script = fail
    async with harness.post() as response:
        assert response.status == status
        assert await response.json() == {"error": {"message": "no"}}
    assert harness.outcomes() == {outcome: 1}


async def test_a_fault_of_the_sidecar_is_a_500_and_says_nothing_of_the_request(engine, harness, caplog, monkeypatch):
    def broken(headers, *_):
        raise RuntimeError(headers["x-prompt"])

    monkeypatch.setattr("uellm.sidecar.request.proxy.end_to_end", broken)
    async with harness.post(x_prompt="secret") as response:
        assert response.status == 500
        assert (await response.json())["error"]["code"] == "internal_error"
    assert "secret" not in caplog.text
    assert "RuntimeError" in caplog.text
    assert harness.sidecar.dispatcher.in_flight == 0
