"""Requests and answers pass through the sidecar unchanged."""

from __future__ import annotations

import gzip
import json
import random
import re

import pytest
from aiohttp import web

from uellm.http import Headers
from uellm.proxying.routes import request_id

CHAT = "/v1/chat/completions"


async def test_request_and_answer_pass_unchanged(engine, harness):
    async with harness.post(b'{"messages": []}', Authorization="Bearer k", traceparent="00-1-2-01") as response:
        assert response.status == 200
        assert await response.read() == b'{"messages": []}'
        assert response.headers["Content-Type"] == "application/json"
    (received,) = engine.received
    assert (received.method, received.path, received.body) == ("POST", CHAT, b'{"messages": []}')
    assert received.headers["Authorization"] == "Bearer k"
    assert received.headers["traceparent"] == "00-1-2-01"
    assert received.headers["Host"] == f"127.0.0.1:{harness.sidecar.port}"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
async def test_every_method_reaches_routes_that_are_not_scheduled(engine, harness, method):
    async with harness.client.request(method, harness.url("/v1/models?x=%2F&y")) as response:
        assert response.status == 200
    assert [(r.method, r.path) for r in engine.received] == [(method, "/v1/models?x=%2F&y")]


async def test_the_engine_decides_what_it_does_not_know(engine, harness):
    async def missing(request, received):
        return web.json_response({"detail": "Not Found"}, status=404, headers={"x-engine": "says"})

    engine.script = missing
    async with harness.client.get(harness.url("/v1/nothing")) as response:
        assert response.status == 404
        assert response.headers["x-engine"] == "says"
        assert await response.json() == {"detail": "Not Found"}
    assert harness.outcomes() == {"rejected_by_engine": 1}


@pytest.mark.parametrize("seed", range(20))
async def test_streams_pass_byte_for_byte_however_they_are_split(engine, harness, seed):
    rng = random.Random(seed)
    events = [f"data: {json.dumps({'n': n, 'text': 'é' * rng.randrange(9)})}\n\n".encode() for n in range(200)]
    whole = b"".join(events) + rng.randbytes(rng.randrange(70_000)) + b"data: [DONE]\n\n"
    cuts = sorted(rng.sample(range(1, len(whole)), rng.randrange(1, 150)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    engine.script = engine.stream(*pieces)
    async with harness.post() as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert await response.read() == whole
    assert harness.outcomes() == {"completed": 1}


async def test_an_event_is_passed_on_before_the_next_one_exists(engine, harness):
    engine.script = engine.stream(b"data: 1\n\n", hold=True)
    async with harness.post() as response:
        assert await response.content.readany() == b"data: 1\n\n"
        (await engine.arrivals.get()).go_on.set()
        assert await response.content.read() == b""


async def test_compressed_bodies_stay_compressed_both_ways(engine, harness):
    squeezed = gzip.compress(b'{"messages": []}')

    async def reply(request, received):
        return web.Response(body=received.body, headers={"Content-Encoding": "gzip"})

    engine.script = reply
    async with harness.post(squeezed, Content_Encoding="gzip") as response:
        assert await response.read() == squeezed
        assert response.headers["Content-Encoding"] == "gzip"
    assert engine.received[0].body == squeezed


async def test_chunked_requests_arrive_whole(engine, harness):
    async def pieces():
        yield b'{"a":'
        yield b"1}"

    async with harness.client.post(harness.url(CHAT), data=pieces()) as response:
        assert await response.read() == b'{"a":1}'
    assert engine.received[0].headers["Content-Length"] == "7"
    assert "Transfer-Encoding" not in engine.received[0].headers


async def test_expect_100_continue_is_answered(harness):
    reader, writer = await harness.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nConnection: close\r\n")
    writer.write(b"Expect: 100-continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert b"200 OK" in await reader.read()
    writer.close()


async def test_hop_by_hop_headers_are_removed(engine, harness):
    async def reply(request, received):
        return web.Response(headers={"Keep-Alive": "timeout=5", "x-private": "1", "Connection": "x-private"})

    engine.script = reply
    named = {"Connection": "keep-alive, x-mine", "x-mine": "1", "TE": "trailers", "Proxy-Authorization": "Basic x"}
    async with harness.client.post(harness.url(CHAT), data=b"{}", headers=named) as response:
        assert not {"Keep-Alive", "x-private"} & set(response.headers)
    assert not {"x-mine", "TE", "Proxy-Authorization", "Connection"} & set(engine.received[0].headers)


async def test_a_request_id_is_kept_or_created_and_sent_to_both_sides(engine, harness):
    async with harness.post(X_Request_Id="mine-1") as response:
        assert response.headers["X-Request-Id"] == "mine-1"
    async with harness.post(X_Request_Id="not a good one") as response:
        made = response.headers["X-Request-Id"]
    assert len(made) == 32
    assert [r.headers["X-Request-Id"] for r in engine.received] == ["mine-1", made]


def test_created_request_ids_are_all_different():
    made = [request_id(Headers([])) for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)


async def test_an_old_client_without_chunks_gets_the_same_bytes(engine, harness):
    engine.script = engine.stream(b"data: 1\n\n", b"data: 2\n\n")
    answer = await harness.raw(b"POST /v1/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"data: 1\n\ndata: 2\n\n"
    assert b"chunked" not in head


async def test_pipelined_requests_are_answered_in_order(engine, harness):
    request = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n%b\r\n%d"
    answer = await harness.raw(request % (b"", 1) + request % (b"Connection: close\r\n", 2))
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"1", b"2"]


async def test_large_bodies_up_to_the_limit_pass(engine, harness):
    body = b"x" * (10 * 1024 * 1024)
    async with harness.post(body) as response:
        assert await response.read() == body
    assert harness.sidecar.proxy.bodies.held_bytes == 0


async def test_redirects_are_passed_to_the_client(engine, harness):
    async def redirect(request, received):
        return web.Response(status=307, headers={"Location": f"http://{request.headers['Host']}/v1/models"})

    engine.script = redirect
    async with harness.client.get(harness.url("/v1/models/"), allow_redirects=False) as response:
        assert response.status == 307
        assert response.headers["Location"] == str(harness.url("/v1/models"))
