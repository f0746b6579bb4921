"""What clients, load balancers and meshes do that a strict proxy stumbles over."""

from __future__ import annotations

import asyncio
import json
import socket

import aiohttp
import pytest
from aiohttp import web

from helpers.sizes import MIB
from uellm import drain_token
from uellm.http import RequestLimits
from uellm.proxying.process import Address
from uellm.vllm_routes import AUDIO, AUDIO_BODY_BYTES

GET = b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
CHAT, COMPLETIONS = b"/v1/chat/completions", b"/v1/completions"


def post(path: bytes, body: bytes = b"{}") -> bytes:
    return POST % (path, len(body), body)


# Bodies.


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/audio/transcriptions"])
async def test_a_body_of_25_mib_reaches_the_engine(engine, harness, path):
    async with harness.client.post(harness.url(path), data=bytes(25 * MIB)) as response:
        assert (response.status, len(await response.read())) == (200, 25 * MIB)
    assert harness.sidecar.proxy.bodies.held_bytes == 0


@pytest.mark.parametrize("path", AUDIO)
async def test_audio_has_a_limit_a_little_above_vllms_own(engine, harness, path):
    async with harness.client.post(harness.url(path), data=bytes(AUDIO_BODY_BYTES + 1)) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (413, "too_large")
    assert engine.received == []


async def test_limits_of_bodies_are_settings_by_route_and_change_while_it_runs(engine, launch):
    routes = [{"path": "/v1/completions", "maxBodyBytes": 2000}]
    harness = await launch({"classes": [], "http": {"maxBodyBytes": 1000, "routes": routes}})

    async def status(path: str, size: int) -> int:
        async with harness.client.post(harness.url(path), data=bytes(size)) as response:
            return response.status

    assert [await status("/v1/models", size) for size in (1000, 1001)] == [200, 413]
    assert [await status("/v1/completions", size) for size in (2000, 2001)] == [200, 413]
    harness.configure({"classes": [], "http": {"maxBodyBytes": 5000}})
    harness.sidecar.reload()
    assert [await status("/v1/completions", size) for size in (5000, 5001)] == [200, 413]


async def test_a_body_that_arrives_steadily_may_take_longer_than_a_short_one_may(engine, launch):
    harness = await launch(limits=RequestLimits(body_deadline_s=0.1, body_bytes_per_s=100.0))
    reader, writer = await harness.connect()
    writer.write(b"POST /v1/models HTTP/1.1\r\nHost: h\r\nContent-Length: 600\r\n\r\n")
    for _ in range(6):
        writer.write(bytes(100))
        await asyncio.sleep(0.05)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()


# Connections.


async def test_a_connection_may_be_unused_for_longer_than_load_balancers_keep_one():
    assert RequestLimits().idle_s > 4000


async def test_a_connection_that_was_unused_too_long_is_told_before_it_is_closed(engine, launch):
    harness = await launch({"classes": [], "http": {"idleTimeout": "500ms"}})
    reader, writer = await harness.connect()
    writer.write(GET)
    await reader.readuntil(b"\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close\r\n" in answer
    writer.close()


async def test_the_idle_time_of_a_connection_begins_anew_with_each_answer(engine, launch):
    harness = await launch({"classes": [], "http": {"idleTimeout": "1s"}})
    reader, writer = await harness.connect()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.4)
        asked_s = asyncio.get_running_loop().time()
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 408 ")
    assert asyncio.get_running_loop().time() - asked_s > 0.9
    writer.close()


async def test_a_shorter_idle_time_is_in_force_from_the_next_answer_on(engine, launch):
    harness = await launch({"classes": []})
    reader, writer = await harness.connect()
    writer.write(GET)
    await reader.readuntil(b"\r\n\r\n")
    harness.config.write_text(json.dumps({"classes": [], "http": {"idleTimeout": "50ms"}}))
    harness.sidecar.reload()
    writer.write(GET)
    await reader.readuntil(b"\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_connection_that_is_opened_ahead_of_its_first_request_stays_open(engine, launch):
    harness = await launch(limits=RequestLimits(header_deadline_s=0.05))
    reader, writer = await harness.connect()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(), 0.2)
    writer.write(GET)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python knows no IPv6")
async def test_both_ports_listen_on_ipv4_and_ipv6(engine, launch):
    everywhere = Address.parse(":0", "--listen")
    harness = await launch(listen=everywhere, metrics_listen=everywhere)
    ports = (harness.sidecar.port, "/v1/models"), (harness.sidecar.metrics_port, "/livez")
    for port, path in ports:
        for host in ("127.0.0.1", "[::1]"):
            async with harness.client.get(f"http://{host}:{port}{path}") as response:
                assert response.status == 200


# Heads.


async def test_a_url_of_60_kib_and_a_header_of_1_mib_pass_as_they_do_at_vllm(engine, harness):
    reader, writer = await harness.connect()
    target, value = b"/v1/models?" + b"q" * 60 * 1024, b"x" * 1000
    fields = b"".join(b"X-%d: %b\r\n" % (number, value) for number in range(1000))
    engine.script = _told_sizes
    writer.write(b"GET %b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (target, fields))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()
    received = engine.received[-1]
    assert received.path.encode() == target
    assert received.headers["X-999"].encode() == value


async def _told_sizes(request: web.Request, received: object) -> web.Response:
    return web.Response(body=b"{}")


async def test_a_long_head_counts_in_the_memory_for_bodies_until_it_is_there(engine, harness, eventually):
    _, writer = await harness.connect()
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: h\r\nX: " + b"x" * MIB)
    held = harness.sidecar.proxy.bodies
    await eventually(lambda: held.held_bytes > MIB // 2)
    writer.transport.abort()
    await eventually(lambda: held.held_bytes == 0)


async def test_more_headers_than_anybody_sends_are_refused(engine, harness):
    answer = await harness.raw(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 1024 + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431")


async def test_a_header_value_in_latin_1_reaches_the_engine_as_it_was_sent(engine, harness):
    reader, writer = await harness.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nX-Title: caf\xe9\r\nContent-Length: 2\r\n\r\n{}")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert engine.received[-1].headers["X-Title"].encode("utf-8", "surrogateescape") == b"caf\xe9"
    writer.close()


async def test_a_key_in_latin_1_is_no_key_of_another_spelling(engine, launch, tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "a").write_text("caf?")
    harness = await launch({"classes": [], "auth": {"keysDirectory": str(tmp_path / "keys")}})
    answer = await harness.raw(
        b"GET /v1/models HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer caf\xe9\r\nConnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("request_line", [b"GET /v1/models HTTP/1.0", b"POST /v1/completions HTTP/1.0"])
async def test_a_client_of_http_1_0_need_not_send_a_host(engine, harness, request_line):
    answer = await harness.raw(request_line + b"\r\nContent-Length: 2\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"{}")
    assert engine.received[-1].headers["Host"]


# Clients that close their side.


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("path", [COMPLETIONS, b"/v1/models"])
async def test_a_client_that_only_closes_its_side_gets_its_whole_answer(engine, harness, eventually, path, version):
    engine.script = engine.on_word
    reader, writer = await harness.connect()
    writer.write(post(path).replace(b"HTTP/1.1", b"HTTP/" + version))
    received = await engine.arrivals.get()
    writer.write_eof()
    assert await reader.read(1) == b"H"  # the probe is the begin of the answer
    await asyncio.sleep(0.15)
    received.go_on.set()
    answer = b"H" + await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n{}")
    assert harness.outcomes() == {"completed": 1}
    writer.close()


async def test_a_client_that_only_closes_its_side_gets_its_whole_stream(engine, harness, eventually):
    engine.script = engine.stream(b"data: [DONE]\n\n", hold=True)
    reader, writer = await harness.connect()
    writer.write(post(CHAT, b'{"stream":true}'))
    received = await engine.arrivals.get()
    head = await reader.readuntil(b"\n\n\r\n")
    writer.write_eof()
    assert await reader.read(1) == b"0"  # the probe is the begin of the next chunk's size
    received.go_on.set()
    rest = await asyncio.wait_for(reader.read(), 5)
    assert head.endswith(b"data: [DONE]\n\n\r\n")
    assert rest.lstrip(b"0") == b"\r\n\r\n"
    await eventually(lambda: harness.outcomes() == {"completed": 1})
    writer.close()


async def test_requests_sent_ahead_of_closing_are_all_answered(engine, harness):
    reader, writer = await harness.connect()
    writer.write(post(COMPLETIONS, b"1") + post(COMPLETIONS, b"2"))
    writer.write_eof()
    answers = await asyncio.wait_for(reader.read(), 5)
    assert [part.rpartition(b"\r\n\r\n")[2][:1] for part in answers.split(b"HTTP/1.1 200")[1:]] == [b"1", b"2"]
    writer.close()


async def test_a_client_that_closes_both_sides_has_left_before_its_answer_is_there(engine, harness, eventually):
    engine.script = engine.on_word
    _, writer = await harness.connect()
    writer.write(post(COMPLETIONS))
    received = await engine.arrivals.get()
    writer.close()
    await asyncio.wait_for(received.left.wait(), 2.0)
    await eventually(lambda: harness.outcomes() == {"client_left": 1})


async def test_a_client_that_closes_its_side_in_the_middle_of_its_body_has_left(engine, harness, eventually):
    _, writer = await harness.connect()
    writer.write(b"POST /v1/models HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n{")
    await eventually(lambda: harness.sidecar.proxy.bodies.held_bytes == 1)
    writer.write_eof()
    await eventually(lambda: harness.outcomes() == {"client_left": 1})
    writer.close()


# Priorities.


@pytest.mark.parametrize("value", ['"high"', "1.5", "null", "[]", "9223372036854775808", "true"])
async def test_a_priority_of_a_wrong_type_is_left_to_the_engine_to_refuse(engine, launch, value):
    harness = await launch({"classes": [], "engine": {"acceptsPriority": True}})
    await harness.ask(f'{{"prompt":"a","priority":{value}}}'.encode())
    assert json.loads(engine.received[-1].body)["priority"] == json.loads(value)


async def test_a_priority_that_is_a_number_is_replaced(engine, launch):
    harness = await launch({"classes": [], "engine": {"acceptsPriority": True}})
    await harness.ask(b'{"messages":[],"priority":-5}')
    assert json.loads(engine.received[-1].body)["priority"] > 0


# Draining.


async def test_a_process_that_ends_answers_for_a_while_that_it_does(engine, launch):
    harness = await launch(lame_duck_s=2.0)
    ending = asyncio.create_task(harness.sidecar.stop(linger=True))
    async with harness.post() as response:
        assert (response.status, response.headers["Connection"]) == (503, "close")
        assert (await response.json())["error"]["code"] == "draining"
    assert not ending.done()
    assert await ending


async def test_a_process_whose_pod_was_drained_before_does_not_wait_again(engine, launch):
    harness = await launch(lame_duck_s=3600.0)
    harness.sidecar.proxy.drain.begin()
    harness.sidecar.proxy.drain._since_s -= 3600.0
    assert await asyncio.wait_for(harness.sidecar.stop(linger=True), 5)


@pytest.mark.parametrize("given", [None, "wrong", "caf\xe9", ""])
async def test_nobody_drains_a_pod_without_its_secret(launch, tmp_path, given):
    harness = await launch(placement=tmp_path / "placement.json")
    (tmp_path / drain_token.FILE).write_text("secret")
    headers = {} if given is None else {drain_token.HEADER: given}
    async with harness.client.post(harness.management("/uellm/drain"), headers=headers) as response:
        assert response.status == 403
        assert drain_token.FILE in (await response.json())["error"]["message"]
    assert not harness.sidecar.proxy.drain.draining


@pytest.mark.parametrize("shared", [True, False])
async def test_nobody_drains_a_pod_that_has_no_secret(launch, tmp_path, shared):
    harness = await launch(placement=tmp_path / "placement.json" if shared else None)
    async with harness.client.post(harness.management("/uellm/drain"), headers={drain_token.HEADER: "a"}) as response:
        assert response.status == 403


# WebSockets.


async def _echo_words(request: web.Request, received: object) -> web.WebSocketResponse:
    words = web.WebSocketResponse(max_msg_size=0)
    await words.prepare(request)
    await words.send_str("hello")
    async for message in words:
        await words.send_bytes(message.data) if isinstance(message.data, bytes) else await words.send_str(message.data)
    return words


async def test_a_websocket_passes_both_ways_until_it_is_closed(engine, harness, eventually):
    engine.script = _echo_words
    async with harness.client.ws_connect(harness.url("/v1/realtime"), max_msg_size=0) as words:
        assert await words.receive_str() == "hello"
        assert harness.sidecar.proxy.attainment().load.passing == 1
        for text in ("a", "b" * 100_000):
            await words.send_str(text)
            assert await words.receive_str() == text
        await words.send_bytes(bytes(8 * MIB))
        assert len(await words.receive_bytes()) == 8 * MIB
    assert words.close_code == 1000
    await eventually(lambda: harness.outcomes() == {"completed": 1})
    load = harness.sidecar.proxy.attainment().load
    assert (load.passing, load.passed) == (0, 1)
    assert engine.received[-1].headers["Upgrade"].lower() == "websocket"
    await eventually(lambda: harness.sidecar.engine.pool.in_use == 0)


async def test_an_engine_without_the_websocket_says_so_itself(engine, harness):
    async def refuse(request: web.Request, received: object) -> web.Response:
        return web.Response(status=403, text="no such socket")

    engine.script = refuse
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await harness.client.ws_connect(harness.url("/v1/realtime"))
    assert refused.value.status == 403
    assert harness.outcomes() == {"rejected_by_engine": 1}


async def test_a_websocket_needs_a_key_like_every_other_route(engine, launch, tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "a").write_text("sk-1")
    harness = await launch({"classes": [], "auth": {"keysDirectory": str(tmp_path / "keys")}})
    engine.script = _echo_words
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await harness.client.ws_connect(harness.url("/v1/realtime"))
    assert refused.value.status == 401
    async with harness.client.ws_connect(
        harness.url("/v1/realtime"), headers={"Authorization": "Bearer sk-1"}
    ) as words:
        assert await words.receive_str() == "hello"


async def test_a_client_that_leaves_its_websocket_ends_the_engines_side(engine, harness, eventually):
    engine.script = _echo_words
    words = await harness.client.ws_connect(harness.url("/v1/realtime"))
    words._response.connection.transport.abort()
    await asyncio.wait_for((await engine.arrivals.get()).left.wait(), 5)
    await eventually(lambda: harness.outcomes() == {"client_left": 1})


async def test_an_administrative_websocket_stays_refused(engine, harness):
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await harness.client.ws_connect(harness.url("/sleep"))
    assert refused.value.status == 403
    assert engine.received == []


# Metrics.


async def test_counters_end_in_total_and_nothing_else_does(engine, harness):
    await harness.ask(b'{"prompt":"a"}')
    async with harness.client.get(harness.management("/metrics")) as response:
        text = await response.text()
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE uellm_"))
    assert kinds["uellm_scheduler_shed_total"] == "counter"
    assert {name for name, kind in kinds.items() if (kind == "counter") != name.endswith("_total")} == set()


@pytest.mark.parametrize(
    ("http", "origin", "allowed"),
    [
        ({}, "http://app", None),
        ({"allowedOrigins": ["http://app"]}, "http://app", ("http://app", None)),
        ({"allowedOrigins": ["http://app"]}, "http://evil", None),
        ({"allowedOrigins": ["http://app"]}, None, None),
        ({"allowedOrigins": ["*"]}, "http://any", ("*", None)),
        ({"allowedOrigins": ["*"]}, "http://\u00fc", None),
        ({"allowedOrigins": ["*"], "allowCredentials": True}, "http://any", ("http://any", "true")),
    ],
)
async def test_a_page_in_a_browser_may_read_why_it_was_refused_if_its_origin_is_allowed(launch, http, origin, allowed):
    harness = await launch({"classes": [], "http": http})
    async with harness.post(x_slo_class="nope", **({"Origin": origin} if origin else {})) as response:
        assert response.status == 400
        found = [response.headers.get(f"Access-Control-Allow-{name}") for name in ("Origin", "Credentials")]
        assert found == list(allowed or (None, None))
        readable = response.headers.get("Access-Control-Expose-Headers", "").split(", ")
        # With the last one a late request tells the clients' libraries not to send it again.
        for name in ("Retry-After", "retry-after-ms", "x-should-retry"):
            assert (name in readable) == (allowed is not None)


async def test_a_browsers_question_is_answered_by_the_engine(engine, harness):
    asked = {"Origin": "http://app", "Access-Control-Request-Method": "POST"}
    async with harness.client.options(harness.url("/v1/chat/completions"), headers=asked) as response:
        await response.read()
    assert [call.method for call in engine.received] == ["OPTIONS"]


@pytest.mark.parametrize("cut", [0, 1, 7, 20])
async def test_an_offer_of_http_2_without_tls_is_passed_over_also_with_a_body_in_chunks(engine, harness, cut):
    offer = (
        b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    )
    chunks = b"2\r\n{}\r\n3;x=y\r\n   \r\n0\r\n\r\n"
    reader, writer = await harness.connect()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n" + offer + b"\r\n" + chunks[:cut]
    )
    await writer.drain()
    async with harness.client.get(harness.management("/livez")):
        pass  # so that the sidecar has read what is there
    writer.write(chunks[cut:])
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert engine.received[-1].body == b"{}   "
