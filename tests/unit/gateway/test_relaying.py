"""Answers pass as they are, clients that leave are noticed, slow ones are held to their pace."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from helpers.fake_engine import FakeEngine, Received, eventually

EVENTS = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % n for n in range(50)]
DONE = b"data: [DONE]\n\n"


async def test_a_stream_passes_byte_for_byte(harness, engines) -> None:
    engine = await engines()
    engine.script = FakeEngine.stream(*EVENTS, DONE)
    harness.serve("llama", engine.port)
    async with harness.post() as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert await response.read() == b"".join([*EVENTS, DONE])
    assert harness.outcomes() == {"completed": 1}


async def test_the_first_event_is_there_before_the_last_one_exists(harness, engines) -> None:
    engine = await engines()
    engine.script = FakeEngine.stream(EVENTS[0], hold=True)
    harness.serve("llama", engine.port)
    async with harness.post() as response:
        assert await response.content.readuntil(b"\n\n") == EVENTS[0]
        (await engine.arrivals.get()).go_on.set()


async def test_a_client_that_leaves_ends_the_request_at_the_engine(harness, engines) -> None:
    engine = await engines()
    harness.serve("llama", engine.port)
    for script in (FakeEngine.stream(EVENTS[0], hold=True), FakeEngine.on_word):
        engine.script = script
        asking = harness.ask()
        received = await engine.arrivals.get()
        asking.cancel()
        await asyncio.wait_for(received.left.wait(), 1.0)
    await eventually(lambda: harness.outcomes() == {"client_left": 2})
    assert harness.gateway.fleet.replicas(next(iter(harness.gateway.fleet.catalog.services))).connected is False


async def test_a_client_that_disconnects_after_done_has_its_whole_answer(harness, engines) -> None:
    engine = await engines()
    engine.script = FakeEngine.stream(EVENTS[0], DONE, hold=True)
    harness.serve("llama", engine.port)
    async with harness.post() as response:
        assert await response.content.readexactly(len(EVENTS[0] + DONE)) == EVENTS[0] + DONE
        response.close()
    await eventually(lambda: harness.outcomes() == {"completed": 1})


async def test_a_replica_that_dies_in_a_stream_ends_it_with_an_error_event_and_no_done(harness, engines) -> None:
    engine, other = await engines(), await engines()
    harness.serve("llama", engine.port)
    engine.script = FakeEngine.stream(EVENTS[0], die=True)
    async with harness.post() as response:
        assert await response.content.readuntil(b"\n\n") == EVENTS[0]
        harness.serve("llama", engine.port, other.port)
        (await engine.arrivals.get()).go_on.set()
        rest = await response.read()
    assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "engine_lost"
    assert b"[DONE]" not in rest
    assert other.received == []


async def test_a_client_that_does_not_read_holds_the_engine_up_instead_of_filling_memory(harness, engines) -> None:
    engine = await engines()
    written = 0

    async def flood(request: web.Request, received: Received) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"data: " + b"x" * 16384 + b"\n\n")
            written += 16384

    engine.script = flood
    harness.serve("llama", engine.port)
    harness.gateway.forwarding.stall_s = 0.3
    _, writer = await harness.connect()
    writer.transport.pause_reading()
    body = b'{"model":"llama"}'
    writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    received = await engine.arrivals.get()
    await asyncio.wait_for(received.left.wait(), 5)
    await eventually(lambda: harness.outcomes() == {"client_slow": 1})
    assert written < 16 * 1024 * 1024  # the kernel's buffers on loopback; the gateway's own are 64 KiB
    writer.close()


async def test_the_request_id_is_the_clients_and_passes_both_ways(harness, engines) -> None:
    engine = await engines()
    harness.serve("llama", engine.port)
    async with harness.post(X_Request_Id="mine-1") as response:
        assert response.headers["X-Request-Id"] == "mine-1"
    assert engine.received[0].headers["X-Request-Id"] == "mine-1"
    async with harness.post() as response:
        assert response.headers["X-Request-Id"] == engine.received[1].headers["X-Request-Id"]


async def test_the_access_log_tells_where_a_request_went_and_nothing_of_its_content(harness, engines, caplog) -> None:
    engine = await engines()
    harness.serve("llama", engine.port)
    caplog.set_level("INFO", "uellm.gateway.access")
    async with harness.post(b'{"model":"llama","prompt":"planted"}', Authorization="Bearer planted") as response:
        await response.read()
    await eventually(lambda: caplog.records)
    line = json.loads(caplog.messages[0])
    expected = {"service": "llama", "namespace": "default", "outcome": "completed", "status": 200, "tries": 1}
    assert {name: line[name] for name in expected} == expected
    assert line["replica"] == f"127.0.0.1:{engine.port}"
    assert "planted" not in caplog.text


async def test_an_answer_for_a_head_request_has_no_body(harness) -> None:
    harness.serve("llama")
    async with harness.client.head(harness.url("/v1/models")) as response:
        assert (response.status, await response.read()) == (200, b"")
