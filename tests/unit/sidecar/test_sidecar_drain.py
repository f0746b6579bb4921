"""A pod that is being deleted: it finishes the requests in progress and refuses new ones."""

from __future__ import annotations

import asyncio
import json

import aiohttp
from aiohttp import web

from uellm.sidecar.engine.connection import EngineHealth


async def probe(harness, path: str) -> int:
    async with harness.client.get(harness.management(path)) as response:
        return response.status


async def test_draining_waits_for_streams_and_the_queue_and_refuses_what_is_new(engine, launch, eventually):
    harness = await launch({"classes": [], "engine": {"maxNumSeqs": 1}})
    engine.script = engine.on_word
    running, queued = harness.ask(b"running"), harness.ask(b"queued")
    received = await engine.arrivals.get()
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    drained = asyncio.create_task(_drain(harness))
    await eventually(lambda: harness.sidecar.proxy.drain.draining)

    assert await probe(harness, "/readyz") == 503
    assert await probe(harness, "/livez") == 200
    async with harness.post() as response:
        assert (response.status, response.headers["Connection"]) == (503, "close")
        assert int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["error"]["code"] == "draining"
    assert not drained.done()

    received.go_on.set()
    (await engine.arrivals.get()).go_on.set()
    assert [status for status, _ in await asyncio.gather(running, queued)] == [200, 200]
    answer = await drained
    assert (answer["drained"], answer["remaining"]) == (True, 0)


async def _drain(harness):
    async with harness.drain() as response:
        return await response.json()


async def test_requests_that_were_on_their_way_here_already_are_still_served(engine, launch, eventually):
    harness = await launch(lame_duck_s=1.0)
    drained = asyncio.create_task(_drain(harness))
    await eventually(lambda: harness.sidecar.proxy.drain.draining)
    assert await probe(harness, "/readyz") == 503
    async with harness.post() as response:
        assert (response.status, response.headers["Connection"]) == (200, "close")
    assert (await drained)["seconds"] >= 0.99
    assert (await harness.ask())[0] == 503


async def test_a_drain_that_will_not_wait_shortens_one_that_does(engine, launch):
    harness = await launch(lame_duck_s=3600.0)
    waiting = asyncio.create_task(_drain(harness))
    while not harness.sidecar.proxy.drain.draining:
        await probe(harness, "/livez")
    harness.sidecar.proxy.drain.begin()
    assert (await harness.ask())[0] == 503
    assert (await waiting)["drained"]


async def test_draining_ends_with_its_grace_period(engine, launch):
    harness = await launch(grace_s=0.1)
    engine.script = engine.on_word
    asked = harness.ask()
    received = await engine.arrivals.get()
    answer = await _drain(harness)
    assert (answer["drained"], answer["remaining"]) == (False, 1)
    received.go_on.set()
    assert (await asked)[0] == 200


async def test_a_drain_ends_with_its_last_answer_however_long_its_grace_period_is(engine, launch):
    harness = await launch(grace_s=3570.0)
    engine.script = engine.stream(b"data: 1\n\n", hold=True)
    answer = harness.ask()
    received = await engine.arrivals.get()
    drained = asyncio.create_task(_drain(harness))
    finished, _ = await asyncio.wait([drained], timeout=0.5)
    assert not finished
    received.go_on.set()
    assert await answer == (200, b"data: 1\n\n")
    assert (await asyncio.wait_for(drained, 5))["drained"]


async def test_an_engine_that_is_sick_is_not_waited_for_as_long_as_one_that_answers(engine, launch, eventually):
    harness = await launch(sick_grace_s=1.0)
    engine.script = engine.on_word
    asked = harness.ask()
    received = await engine.arrivals.get()
    drained = asyncio.create_task(_drain(harness))
    await eventually(lambda: harness.sidecar.proxy.drain.draining)
    # A short spell is none.
    engine.healthy = False
    await eventually(lambda: harness.sidecar.engine.health is EngineHealth.UNHEALTHY)
    engine.healthy = True
    await eventually(lambda: harness.sidecar.engine.ready)
    finished, _ = await asyncio.wait([drained], timeout=1.1)
    assert not finished
    engine.healthy = False
    answer = await asyncio.wait_for(drained, 5)
    assert (answer["drained"], answer["remaining"]) == (False, 1)
    received.go_on.set()
    assert (await asked)[0] == 200


async def test_a_new_engine_in_the_same_pod_ends_the_draining(engine, harness, eventually):
    await _drain(harness)
    assert await probe(harness, "/readyz") == 503
    await engine.stop()
    await eventually(lambda: harness.sidecar.engine.health is EngineHealth.GONE)
    await engine.start()
    await eventually(lambda: harness.sidecar.engine.ready)
    assert await probe(harness, "/readyz") == 200
    assert (await harness.ask())[0] == 200


async def test_a_sick_spell_of_the_engine_does_not_end_the_draining(engine, harness, eventually):
    await _drain(harness)
    engine.healthy = False
    await eventually(lambda: harness.sidecar.engine.health is EngineHealth.UNHEALTHY)
    engine.healthy = True
    await eventually(lambda: harness.sidecar.engine.ready)
    assert await probe(harness, "/readyz") == 503


async def test_a_process_that_ends_does_not_take_requests_again(engine, harness, eventually):
    await harness.sidecar.stop(linger=False)
    await engine.stop()
    await eventually(lambda: harness.sidecar.engine.health is EngineHealth.GONE)
    await engine.start()
    await eventually(lambda: harness.sidecar.engine.ready)
    assert (await harness.ask())[0] == 503


async def test_a_stream_ends_its_connection_once_the_pod_is_draining(engine, harness):
    engine.script = engine.on_word
    request = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"
    answer = asyncio.create_task(harness.raw(request))
    received = await engine.arrivals.get()
    harness.sidecar.proxy.drain.begin()
    received.go_on.set()
    assert b"200 OK" in await answer


REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"


async def test_a_connection_that_nobody_uses_is_closed_once_requests_are_refused_and_not_before(engine, launch):
    harness = await launch(lame_duck_s=3600.0)
    reader, writer = await harness.connect()
    writer.write(REQUEST)
    await reader.readuntil(b"\r\n\r\n{}")
    harness.sidecar.proxy.drain.begin(lame_duck_s=3600.0)
    (connection,) = harness.connections()
    assert not connection.closed
    harness.sidecar.proxy.drain.begin()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_stream_from_before_the_drain_ends_its_connection_when_it_is_done(engine, harness):
    engine.script = engine.stream(b"data: 1\n\n", hold=True)
    reader, writer = await harness.connect()
    writer.write(REQUEST)
    await reader.readuntil(b"data: 1\n\n")
    harness.sidecar.proxy.drain.begin()
    (await engine.arrivals.get()).go_on.set()
    assert await asyncio.wait_for(reader.read(), 5) == b"\r\n0\r\n\r\n"
    writer.close()


async def test_an_engine_that_was_restarted_before_it_ever_served_ends_the_draining(engine, launch, eventually):
    await engine.stop()
    harness = await launch(ready=False)
    await _drain(harness)  # its startup probe failed: the kubelet ran the hook, and restarts the container
    await engine.start()
    await eventually(lambda: harness.sidecar.engine.ready)
    assert await probe(harness, "/readyz") == 200
    assert (await harness.ask())[0] == 200


async def test_a_first_engine_that_becomes_ready_while_the_pod_goes_does_not_end_the_draining(
    engine, launch, eventually
):
    await engine.stop()
    harness = await launch(lame_duck_s=3600.0, ready=False)
    drained = asyncio.create_task(_drain(harness))
    await eventually(lambda: harness.sidecar.proxy.drain.draining)
    await engine.start()
    await eventually(lambda: harness.sidecar.engine.ready)
    assert await probe(harness, "/readyz") == 503
    harness.sidecar.proxy.drain.begin()
    assert (await drained)["drained"]


async def test_no_stream_is_cut_short_by_a_drain(engine, launch, eventually):
    harness = await launch({"classes": [], "engine": {"maxNumSeqs": 20}})

    async def script(request, received):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await received.go_on.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    engine.script = script
    streams = [harness.ask(b"{}") for _ in range(40)]
    dispatcher = harness.sidecar.dispatcher
    await eventually(lambda: dispatcher.queued + dispatcher.in_flight == 40 and dispatcher.queued >= 20)
    drained = asyncio.create_task(_drain(harness))
    await eventually(lambda: harness.sidecar.proxy.drain.draining)
    for _ in streams:
        (await engine.arrivals.get()).go_on.set()
    assert await asyncio.gather(*streams) == [(200, b"data: 1\n\ndata: [DONE]\n\n")] * 40
    assert (await drained)["drained"]
    assert harness.outcomes() == {"completed": 40}


async def test_at_the_end_of_the_grace_period_the_queue_is_told_to_go_elsewhere(engine, launch, eventually):
    harness = await launch({"classes": [], "engine": {"maxNumSeqs": 1}})
    engine.script = engine.on_word
    running = harness.ask(b"running")
    received = await engine.arrivals.get()
    reader, writer = await harness.connect()
    writer.write(REQUEST)
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    ended = asyncio.create_task(harness.sidecar.__aexit__(None, None, None))
    refused = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await ended
    head, _, body = refused.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in head
    assert json.loads(body)["error"]["code"] == "draining"
    # What the engine has may have been answered in part, so that one is cut.
    assert isinstance((await asyncio.gather(running, return_exceptions=True))[0], aiohttp.ClientError)
    assert received.left.is_set()
    assert harness.outcomes() == {"draining": 2}


async def test_an_upload_that_the_end_of_the_pod_interrupts_is_told_to_go_elsewhere(harness):
    reader, writer = await harness.connect()
    writer.write(REQUEST[:-1])
    while not harness.sidecar.proxy.drain.active:
        await probe(harness, "/livez")
    await harness.sidecar.__aexit__(None, None, None)
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 503 ")
    writer.close()
