"""A client that disconnects at any point removes its request from the queue and from the engine."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"


async def left_within_1_s(received) -> None:
    await asyncio.wait_for(received.left.wait(), 1.0)


async def test_leaving_before_the_first_byte_closes_the_engines_connection(engine, harness, eventually):
    engine.script = engine.on_word
    _, writer = await harness.connect()
    writer.write(REQUEST)
    received = await engine.arrivals.get()
    writer.close()
    await left_within_1_s(received)
    await eventually(lambda: harness.outcomes() == {"client_left": 1})
    assert harness.sidecar.dispatcher.in_flight == 0


async def test_leaving_a_stream_closes_the_engines_connection(engine, harness, eventually):
    engine.script = engine.stream(b"data: 1\n\n", hold=True)
    reader, writer = await harness.connect()
    writer.write(REQUEST)
    await reader.readuntil(b"data: 1\n\n")
    writer.close()
    await left_within_1_s(await engine.arrivals.get())
    await eventually(lambda: harness.outcomes() == {"client_left": 1})


@pytest.mark.parametrize("pieces", [(b"data: [DONE]\n\n",), (b"data: 1\n\ndata: [D", b"ON", b"E]\n", b"\n")])
async def test_hanging_up_on_the_streams_last_event_is_a_completed_request(engine, harness, eventually, pieces):
    engine.script = engine.stream(*pieces, hold=True)
    async with harness.post() as response:
        await response.content.readexactly(len(b"".join(pieces)))
        response.close()
    await left_within_1_s(await engine.arrivals.get())
    await eventually(lambda: harness.outcomes() == {"completed": 1})


async def test_leaving_an_unscheduled_route_closes_the_engines_connection(engine, harness, eventually):
    engine.script = engine.on_word
    _, writer = await harness.connect()
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
    received = await engine.arrivals.get()
    writer.close()
    await left_within_1_s(received)
    await eventually(lambda: harness.outcomes() == {"client_left": 1})


async def test_a_reset_counts_as_leaving(engine, harness, eventually):
    engine.script = engine.stream(b"data: 1\n\n", hold=True)
    reader, writer = await harness.connect()
    writer.write(REQUEST)
    await reader.readuntil(b"data: 1\n\n")
    writer.transport.abort()
    await left_within_1_s(await engine.arrivals.get())
    await eventually(lambda: harness.outcomes() == {"client_left": 1})


async def test_leaving_the_queue_leaves_the_engine_alone(engine, launch, eventually):
    harness = await launch({"classes": [], "engine": {"maxNumSeqs": 1}})
    engine.script = engine.on_word
    first = harness.ask(b"first")
    running = await engine.arrivals.get()
    _, writer = await harness.connect()
    writer.write(REQUEST)
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    writer.close()
    await eventually(lambda: harness.sidecar.dispatcher.queued == 0)
    running.go_on.set()
    assert (await first)[0] == 200
    await eventually(lambda: harness.outcomes() == {"client_left": 1, "completed": 1})
    assert [received.body for received in engine.received] == [b"first"]


async def test_leaving_in_the_middle_of_a_body_frees_its_memory(engine, harness, eventually):
    _, writer = await harness.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n" + bytes(300_000))
    await eventually(lambda: harness.sidecar.proxy.bodies.held_bytes > 0)
    writer.close()
    await eventually(lambda: harness.outcomes() == {"client_left": 1})
    assert harness.sidecar.proxy.bodies.held_bytes == 0
    assert engine.received == []


@pytest.mark.timeout(30)
async def test_hundreds_of_aborted_requests_leave_nothing_behind(engine, launch, eventually):
    """Aborted in the queue, before the first byte, in a stream, and at random moments."""
    harness = await launch({"classes": [], "engine": {"maxNumSeqs": 30}})
    stream = engine.stream(b"data: 1\n\n", hold=True)

    async def script(request, received):
        return await (stream if received.body == b"stream" else engine.on_word)(request, received)

    engine.script = script
    await eventually(lambda: engine_connections(harness) <= 1)
    dispatcher = harness.sidecar.dispatcher
    tasks = len(asyncio.all_tasks())
    done = 0
    async with aiohttp.ClientSession() as client:
        while done < 600:
            asked = [asyncio.create_task(_abandoned(client, harness, stream=number % 2 == 0)) for number in range(60)]
            await eventually(lambda: dispatcher.queued + dispatcher.in_flight == 60 and dispatcher.queued >= 30)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            done += len(asked)
            await eventually(lambda done=done: harness.outcomes().get("client_left") == done)
            hasty = [asyncio.create_task(_abandoned(client, harness, stream=True)) for _ in range(20)]
            await asyncio.sleep(0)
            for task in hasty:
                task.cancel()
            await asyncio.gather(*hasty, return_exceptions=True)
            await eventually(lambda: harness.sidecar.proxy.drain.active == 0)
            done = harness.outcomes()["client_left"]
    await eventually(lambda: not harness.connections())
    await eventually(lambda: engine_connections(harness) <= 1)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks + 1)
    assert (dispatcher.queued, dispatcher.in_flight, dispatcher._waiting) == (0, 0, {})
    assert harness.sidecar.proxy.bodies.held_bytes == 0
    assert set(harness.outcomes()) == {"client_left"}


async def _abandoned(client, harness, *, stream: bool) -> None:
    async with client.post(harness.url("/v1/completions"), data=b"stream" if stream else b"wait") as response:
        await response.read()


def engine_connections(harness) -> int:
    """Connections to the engine in use. At rest only the health check's may remain."""
    return harness.sidecar.engine.pool.in_use
