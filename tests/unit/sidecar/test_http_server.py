"""Client connections: handled in order, within limits, and closed without loss of data."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from uellm.http import Reply, RequestLimits, Server

GET = b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /v1/models HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b"
CHUNKED = b"POST /v1/models HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


async def test_pipelined_requests_wait_for_their_turn(engine, harness):
    engine.script = engine.on_word
    _, writer = await harness.connect()
    writer.write(POST % (1, b"1") + POST % (1, b"2"))
    first = await engine.arrivals.get()
    assert (first.body, engine.arrivals.empty()) == (b"1", True)
    first.go_on.set()
    second = await engine.arrivals.get()
    assert second.body == b"2"
    second.go_on.set()
    writer.close()


async def test_pipelined_requests_beyond_the_buffer_wait_in_the_socket(engine, launch):
    harness = await launch(limits=RequestLimits(ahead_bytes=1000))
    bodies = [bytes([65 + number]) * 100_000 for number in range(5)]
    reader, writer = await harness.connect()
    writer.write(b"".join(POST % (len(body), body) for body in bodies))
    for body in bodies:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(body)) == body
    writer.close()


async def test_blank_lines_between_requests_are_passed_over(harness):
    reader, writer = await harness.connect()
    for _ in range(2):
        writer.write(b"\r\n" + POST % (2, b"{}") + b"\r\n")
        assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200")
    writer.close()


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n" * 1000, b"\r"], ids=["a line", "many lines", "half a line"])
async def test_a_connection_stays_open_behind_blank_lines(launch, eventually, blank):
    harness = await launch(limits=RequestLimits(header_deadline_s=0.2))
    reader, writer = await harness.connect()
    writer.write(POST % (2, b"{}") + blank)
    assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200")
    if blank == b"\r":
        writer.write(b"\n")
    closed = asyncio.create_task(reader.read())
    assert not (await asyncio.wait({closed}, timeout=0.5))[0]
    writer.write(POST.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) % (2, b"{}"))
    assert (await closed).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_half_a_blank_line_does_not_keep_an_idle_connection_open(launch, eventually):
    harness = await launch(limits=RequestLimits(idle_s=0.2))
    reader, writer = await harness.connect()
    writer.write(b"\r")
    await eventually(lambda: any(each._buffer for each in harness.connections()))
    await eventually(lambda: all(each._idle_alarm is None for each in harness.connections()))
    writer.write(b"\n")
    assert b" 408 " in await reader.read()
    writer.close()


@pytest.mark.parametrize("blank", [b"", b"\r\n"], ids=["nothing", "a blank line"])
async def test_a_client_that_has_said_all_gets_its_answer_and_the_end(engine, harness, eventually, blank):
    engine.script = engine.on_word
    reader, writer = await harness.connect()
    writer.write(POST % (2, b"{}") + blank)
    writer.write_eof()
    asked = await engine.arrivals.get()
    await eventually(lambda: any(each._half_closed for each in harness.connections()))
    asked.go_on.set()
    assert b"200 OK" in await reader.read()
    writer.close()


async def test_what_follows_chunks_in_the_same_piece_is_announced_as_lost(engine, harness):
    """Where it begins is unknown. A client that is told that the connection ends sends it again."""
    head, _, body = (await harness.raw(CHUNKED + GET)).partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert body == b"{}"
    assert len(engine.received) == 1


async def test_blank_lines_behind_chunks_are_not_lost_requests(harness):
    reader, writer = await harness.connect()
    for _ in range(2):
        writer.write(CHUNKED + b"\r\n")
        assert b"Connection: close" not in await reader.readuntil(b"{}")
    writer.close()


async def test_a_long_head_that_drips_in_is_not_copied_for_each_piece(engine, launch, eventually):
    harness = await launch(limits=RequestLimits(ahead_bytes=100))
    reader, writer = await harness.connect()
    head = GET[:-2] + b"X: " + b"x" * 500
    writer.write(head)
    await eventually(lambda: any(len(each._buffer) == len(head) for each in harness.connections()))
    (connection,) = harness.connections()
    held = connection._buffer
    writer.write(b"y")
    await eventually(lambda: len(held) == len(head) + 1)
    writer.write(b"\r\n\r\n" + POST % (2, b"{}"))
    assert (await reader.readuntil(b"{}")).count(b"HTTP/1.1 200") == 2
    assert engine.received[0].headers["X"] == "x" * 500 + "y"
    writer.close()


async def test_a_client_beyond_the_limit_of_connections_is_refused_and_the_others_stay(launch, eventually):
    harness = await launch(limits=RequestLimits(connections=2))
    held = [await harness.connect() for _ in range(2)]
    await eventually(lambda: len(harness.connections()) == 2)
    answer = await harness.raw(b"")
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"Retry-After" in answer
    reader, writer = held[0]
    writer.write(GET)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    for _, writer in held:
        writer.close()


async def test_a_refusal_reaches_a_client_that_is_still_sending(harness):
    reader, writer = await harness.connect()
    writer.write(b"POST /sleep HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n")

    async def send() -> None:
        for _ in range(90):
            writer.write(bytes(100_000))
            await writer.drain()

    sending = asyncio.create_task(send())
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 403")
    writer.close()
    await asyncio.gather(sending, return_exceptions=True)


async def test_a_body_with_nothing_but_framing_is_refused(harness):
    reader, writer = await harness.connect()
    writer.write(b"POST /v1/models HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n")
    writer.write(b"".join(b"X-%d: %b\r\n" % (number, b"y" * 1000) for number in range(200)))
    assert (await reader.read()).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_bodies_of_tiny_pieces_arrive_whole_and_count_as_what_they_are(engine, harness):
    reader, writer = await harness.connect()
    body = bytes(range(256)) * 40
    chunks = b"".join(b"2\r\n%b\r\n" % body[at : at + 2] for at in range(0, len(body), 2))
    writer.write(b"POST /v1/models HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(len(body)) == body
    writer.close()
    assert harness.sidecar.proxy.bodies.held_bytes == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_management_port_knows_its_routes_and_methods(harness, method):
    for path, status in [("/livez", 200), ("/nothing", 404), ("/uellm/drain", 405)]:
        async with harness.client.request(method, harness.management(path)) as response:
            assert response.status == status
            assert response.headers["Content-Type"] == "application/json"
            assert len(await response.read()) == (0 if method == "HEAD" else int(response.headers["Content-Length"]))


async def test_the_management_port_answers_non_http_with_an_error(harness):
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.sidecar.metrics_port)
    writer.write(b"\x16\x03\x01")
    assert (await reader.read()).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_an_answer_that_is_done_leaves_before_the_server_closes(eventually):
    """Its bytes may still wait for a slow reader at that time."""
    body = bytes(range(256)) * 30_000

    async def handle(request, reply):
        reply.send(200, [], body)

    server = Server(handle, lambda fault: ([], b""))
    await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.transport.pause_reading()
    writer.write(GET)
    await eventually(
        lambda: any(connection.writing_paused and not connection.busy for connection in server.connections)
    )
    closing = asyncio.create_task(server.close(20.0))
    await asyncio.sleep(0)
    writer.transport.resume_reading()
    assert (await reader.read()).partition(b"\r\n\r\n")[2] == body
    await closing
    assert not server.connections
    writer.close()


async def test_a_closing_server_waits_no_longer_than_its_timeout(eventually):
    async def handle(request, reply):
        reply.send(200, [], bytes(8_000_000))

    server = Server(handle, lambda fault: ([], b""))
    await server.listen("127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.transport.pause_reading()
    writer.write(GET)
    await eventually(lambda: any(connection.writing_paused for connection in server.connections))
    await server.close(0.05)
    assert not server.connections
    writer.close()


async def test_a_failing_handler_closes_its_connection_and_logs_only_the_error_class(caplog):
    async def handle(request, reply):
        raise RuntimeError("planted")

    server = Server(handle, lambda fault: ([], b""))
    await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(GET)
    assert await reader.read() == b""
    assert "RuntimeError" in caplog.text
    assert "planted" not in caplog.text
    await server.close(1.0)
    writer.close()


async def test_a_server_listens_at_every_address_of_its_name():
    async def handle(request, reply):
        reply.send(200, [], b"ok")

    server = Server(handle, lambda fault: ([], b""))
    await server.listen("localhost", 0)
    for _, _, _, _, address in await asyncio.get_running_loop().getaddrinfo("localhost", server.port, type=1):
        reader, writer = await asyncio.open_connection(address[0], address[1])
        writer.write(GET)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 OK")
        writer.close()
    await server.close(1.0)


@pytest.mark.parametrize(
    ("http_10", "sent"),
    [
        (False, [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n"]),
        (True, [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\na", b"b"]),
    ],
)
def test_a_head_and_the_end_of_a_body_are_sent_with_the_pieces_beside_them(http_10, sent):
    written: list[bytes] = []
    link: Any = SimpleNamespace(closed=False, unread=False, transport=SimpleNamespace(write=written.append))
    reply = Reply(link, http_10=http_10, head_only=False, close=False)
    reply.start(200, (), body_follows=True)
    reply.write(b"a")
    reply.write(b"b", end_follows=True)
    reply.finish()
    assert written == sent
