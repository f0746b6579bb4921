"""Clients whose requests are too large, too slow or not allowed."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from uellm.http import RequestLimits

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\n"


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def code_of(answer: bytes) -> str:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]


async def test_a_body_that_says_it_is_too_long_is_refused_unread(engine, harness):
    reader, writer = await harness.connect()
    writer.write(HEAD + b"Content-Length: 268435457\r\nExpect: 100-continue\r\n\r\n")
    answer = await reader.readuntil(b"}}")
    assert (status_of(answer), code_of(answer)) == (413, "too_large")
    writer.close()


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"], ids=["on its way", "held back"])
async def test_an_answer_before_the_body_says_that_the_connection_ends(engine, harness, expects):
    reader, writer = await harness.connect()
    writer.write(b"POST /sleep HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n" + expects + b"\r\n")
    answer = await reader.readuntil(b"}}")
    assert (status_of(answer), code_of(answer)) == (403, "forbidden")
    assert b"\r\nConnection: close\r\n" in answer
    writer.close()


async def test_a_body_that_turns_out_too_long_is_refused(engine, launch):
    harness = await launch(limits=RequestLimits(body_bytes=1024 * 1024))

    async def endless():
        for _ in range(11):
            yield bytes(100 * 1024)

    async with harness.client.post(harness.url("/v1/completions"), data=endless()) as response:
        assert response.status == 413
    assert engine.received == []
    assert harness.sidecar.proxy.bodies.held_bytes == 0


@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"h%d: %s\r\n" % (n, b"x" * 1000) for n in range(17)),
        b"h: " + b"x" * 17_000 + b"\r\n",
    ],
    ids=["many", "one"],
)
async def test_headers_beyond_their_limit_are_refused(engine, launch, headers):
    harness = await launch(limits=RequestLimits(headers_bytes=16 * 1024))
    answer = await harness.raw(HEAD + headers + b"Connection: close\r\n\r\n")
    assert (status_of(answer), code_of(answer)) == (431, "too_large")
    assert harness.outcomes() == {"too_large": 1}


@pytest.mark.parametrize("sent", [b"POST /v1/comple", HEAD + b"x: "], ids=["line", "header"])
async def test_a_peer_that_does_not_finish_its_headers_is_closed(launch, sent):
    harness = await launch(limits=RequestLimits(header_deadline_s=0.1))
    reader, writer = await harness.connect()
    writer.write(sent)
    assert await reader.read() == b""
    writer.close()


async def test_dripping_headers_do_not_extend_their_deadline(launch):
    harness = await launch(limits=RequestLimits(header_deadline_s=0.2))
    reader, writer = await harness.connect()
    closed = asyncio.create_task(reader.read())
    for byte in HEAD * 10:
        writer.write(bytes([byte]))
        if (await asyncio.wait({closed}, timeout=0.05))[0]:
            break
    assert closed.done()
    writer.close()


async def test_the_next_request_of_a_connection_has_the_same_deadline(launch):
    harness = await launch(limits=RequestLimits(header_deadline_s=0.1))
    reader, writer = await harness.connect()
    writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n{}")
    writer.write(HEAD)
    assert await reader.read() == b""
    writer.close()


async def test_a_request_may_take_longer_than_its_headers_may(engine, launch):
    harness = await launch(limits=RequestLimits(header_deadline_s=0.1))
    engine.script = engine.on_word
    asked = harness.ask()
    running = await engine.arrivals.get()
    await asyncio.wait({asked}, timeout=0.3)
    running.go_on.set()
    assert (await asked)[0] == 200


async def test_a_body_that_does_not_arrive_is_refused_in_time(launch):
    harness = await launch(limits=RequestLimits(body_deadline_s=0.1))
    reader, writer = await harness.connect()
    writer.write(HEAD + b"Content-Length: 5\r\n\r\n{}")
    answer = await reader.readuntil(b"}}")
    assert (status_of(answer), code_of(answer)) == (408, "client_slow")
    writer.close()


async def test_a_slow_reader_holds_back_the_engine_instead_of_filling_memory(engine, harness, eventually):
    total, sent = 64 * 1024 * 1024, 0

    async def flood(request, received):
        nonlocal sent
        response = await _event_stream(request)
        while sent < total:
            await response.write(b"~" * 65536)
            sent += 65536
        return response

    engine.script = flood
    reader, writer = await harness.connect()
    writer.transport.pause_reading()
    writer.write(HEAD + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}")
    await engine.arrivals.get()
    (connection,) = harness.connections()
    await eventually(lambda: connection.writing_paused)
    held = connection.transport.get_write_buffer_size()
    assert held <= 256 * 1024
    assert sent < total / 2
    writer.transport.resume_reading()
    received = 0
    while piece := await reader.read(1024 * 1024):
        received += piece.count(b"~")
    assert received == total
    writer.close()


async def test_a_client_that_stops_reading_is_disconnected_and_its_place_freed(engine, harness, eventually):
    async def flood(request, received):
        response = await _event_stream(request)
        while True:
            await response.write(b"~" * 65536)

    engine.script = flood
    harness.sidecar.proxy.stall_s = 0.1
    _, writer = await harness.connect()
    writer.transport.pause_reading()
    writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
    received = await engine.arrivals.get()
    await asyncio.wait_for(received.left.wait(), 5)
    await eventually(lambda: harness.outcomes() == {"client_slow": 1})
    assert harness.sidecar.dispatcher.in_flight == 0
    writer.close()


async def _event_stream(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


@pytest.mark.parametrize(
    "path",
    [
        *("/sleep", "/wake_up", "/start_profile", "/v1/load_lora_adapter", "/collective_rpc", "/server_info"),
        *("/sleep?level=1", "/%73leep", "//sleep", "/sleep/", "/v1%2Fload_lora_adapter", "/fault_tolerance/apply"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_administrative_routes_are_refused_in_every_spelling(engine, harness, path, method):
    async with harness.client.request(method, harness.url(path)) as response:
        assert response.status == 403
        assert (await response.json())["error"]["code"] == "forbidden"
    assert engine.received == []


@pytest.mark.parametrize("path", ["/v1/../sleep", "/v1/%2e%2e/sleep", "/./sleep", "/v1/models%00", "/v1%0d%0a"])
async def test_paths_that_mean_something_else_elsewhere_are_refused(engine, harness, path):
    async with harness.client.post(harness.url(path)) as response:
        assert response.status == 400
    assert engine.received == []


async def test_the_time_of_an_upload_is_no_time_that_the_client_waited(engine, launch, eventually):
    document = {"classes": [{"name": "chat", "ttft": "200ms", "onDeadline": "Reject"}]}
    harness = await launch(document)
    reader, writer = await harness.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{")
    await eventually(lambda: harness.sidecar.proxy.drain.active == 1)
    uploaded = asyncio.get_running_loop().time() + 0.5
    while asyncio.get_running_loop().time() < uploaded:
        async with harness.client.get(harness.management("/livez")):
            pass
    writer.write(b"}")
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    (queued,) = [line for line in answer.split(b"\r\n") if line.startswith(b"x-uellm-queue-ms: ")]
    assert int(queued.partition(b": ")[2]) < 200


UPLOAD = b"POST /sleep HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n"


async def test_a_client_that_is_refused_during_its_upload_reads_the_refusal_at_its_end(launch):
    harness = await launch(limits=RequestLimits(linger_s=0.5))
    reader, writer = await harness.connect()
    writer.write(UPLOAD)
    loop = asyncio.get_running_loop()
    until_s = loop.time() + 2.0
    while loop.time() < until_s:  # a client at a slow pace, for far longer than the time between two of its bytes
        writer.write(bytes(20_000))
        await writer.drain()
        await asyncio.sleep(0.02)
    assert status_of(await reader.readuntil(b"}}")) == 403
    assert not writer.transport.is_closing()
    writer.close()


@pytest.mark.parametrize(
    "limits",
    [
        {"linger_s": 0.1},
        {"linger_s": 0.1, "linger_bytes": 1000},
        {"linger_s": 0.1, "body_deadline_s": 0.1, "body_bytes_per_s": 1e9},
    ],
    ids=["silent", "endless", "slow"],
)
async def test_the_upload_of_a_client_that_is_refused_is_not_read_for_ever(launch, limits, eventually):
    harness = await launch(limits=RequestLimits(**limits))
    reader, writer = await harness.connect()
    writer.write(UPLOAD)
    await reader.readuntil(b"}}")

    async def send() -> None:
        while True:
            writer.write(bytes(1000))
            await writer.drain()
            await asyncio.sleep(0.01)

    sending = asyncio.create_task(send()) if len(limits) > 1 else None
    await eventually(lambda: not harness.connections())
    if sending is not None:
        sending.cancel()
    writer.close()
