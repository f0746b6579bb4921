"""Connections to the engine: reused while that is safe, and never used for more than one answer at a time."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import Mock

import pytest

from uellm.http import EngineAddress, EngineLost, EnginePool, EngineUnreachable, client
from uellm.http.client_connection import ClientConnection
from uellm.http.loop import factory

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Upstream:
    """A server that answers every request with the given bytes, and records what it received."""

    def __init__(self) -> None:
        self.answer = OK
        self.closes = False
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                length = int(request.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                self.requests.append(request + await reader.readexactly(length))
                writer.write(self.answer)
                if self.closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self.open -= 1
        writer.close()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    server = Upstream()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()


@pytest.fixture
async def pool(upstream) -> AsyncIterator[EnginePool]:
    pool = EnginePool(EngineAddress("127.0.0.1", upstream.port))
    yield pool
    pool.close()


KINDS = {
    "sized": (OK, 200, b"ok"),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1;x=y\r\n!\r\n0\r\n\r\n", 200, b"ok!"),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: y\r\n\r\n", 200, b"a"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b""),
    "informational": (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK, 200, b"ok"),
    "empty": (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", 500, b""),
    "blank line before": (b"\r\n" + OK, 200, b"ok"),
}


async def test_answers_of_every_kind_follow_one_another_on_one_connection(upstream, pool):
    for kind in [*KINDS, *reversed(KINDS), *KINDS]:
        upstream.answer, status, body = KINDS[kind]
        answer = await pool.send("POST", b"/", (), b"{}")
        assert (kind, answer.status, await answer.read()) == (kind, status, body)
        assert answer.headers.get("link") is None
    assert upstream.connections == 1


@pytest.mark.parametrize(
    "closing",
    [
        OK.replace(b"\r\n\r\n", b"\r\nProxy-Connection: close\r\n\r\n"),
        KINDS["trailers"][0].replace(b"x: y", b"Connection: close"),
    ],
    ids=["proxy", "trailer"],
)
async def test_a_connection_that_is_to_be_closed_in_an_unusual_way_takes_no_further_request(upstream, pool, closing):
    for answered in (closing, OK):
        upstream.answer = answered
        answer = await pool.send("POST", b"/", (), b"{}")
        assert (answer.status, bool(await answer.read())) == (200, True)
    assert upstream.connections == 2


async def got(pool: EnginePool, method: str = "GET", target: bytes = b"/x") -> tuple[int, bytes]:
    answer = await pool.send(method, target, (), b"")
    return answer.status, await answer.read()


async def test_a_connection_that_is_not_there_at_once_is_waited_for(pool, upstream, monkeypatch):
    monkeypatch.setattr(client, "_connects_at_once", lambda connecting, address: False)
    assert await got(pool) == (200, b"ok")


async def test_a_connection_serves_one_request_after_the_other(upstream, pool):
    for _ in range(3):
        assert await got(pool) == (200, b"ok")
    assert (upstream.connections, pool.in_use) == (1, 0)


async def test_requests_at_the_same_time_have_connections_of_their_own(upstream, pool):
    assert await asyncio.gather(*(got(pool) for _ in range(5))) == [(200, b"ok")] * 5
    assert upstream.connections == 5


async def test_a_request_is_sent_with_its_length_and_a_host(upstream, pool):
    answer = await pool.send("POST", b"/x?y=%2F", [(b"X-A", b"1")], b"body")
    await answer.read()
    answer = await pool.send("POST", b"/x", [(b"host", b"h")], b"")
    await answer.read()
    host = f"Host: 127.0.0.1:{upstream.port}".encode()
    assert upstream.requests == [
        b"POST /x?y=%2F HTTP/1.1\r\nX-A: 1\r\n" + host + b"\r\nContent-Length: 4\r\n\r\nbody",
        b"POST /x HTTP/1.1\r\nhost: h\r\nContent-Length: 0\r\n\r\n",
    ]


@pytest.mark.parametrize(
    ("answer", "closes"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
        (b"HTTP/1.1 200 OK\r\n\r\nok", True),
        (OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged", False),
        (OK + b"\x00", False),
    ],
    ids=["asked to close", "old", "until closed", "an answer too many", "rubbish behind"],
)
async def test_a_connection_of_which_more_could_come_is_not_used_again(upstream, pool, answer, closes, eventually):
    upstream.answer, upstream.closes = answer, closes
    for _ in range(2):
        assert await got(pool) == (200, b"ok")
    assert upstream.connections == 2
    await eventually(lambda: not pool.connections)


async def test_unsolicited_bytes_close_the_connection(upstream, pool, eventually):
    assert await got(pool) == (200, b"ok")
    (connection,) = pool.connections
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
    assert await got(pool) == (200, b"ok")
    assert upstream.connections == 2


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_end_with_their_head(upstream, pool, status):
    upstream.answer = b"HTTP/1.1 %d x\r\n\r\n" % status
    assert [await got(pool), await got(pool)] == [(status, b"")] * 2
    assert upstream.connections == 1


async def test_the_length_of_an_answer_to_head_is_not_waited_for(upstream, pool):
    upstream.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    answer = await pool.send("HEAD", b"/x", (), b"")
    assert (answer.headers.get("content-length"), await answer.read()) == ("1000", b"")


async def test_informational_answers_are_skipped(upstream, pool):
    upstream.answer = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK
    answer = await pool.send("GET", b"/x", (), b"")
    assert (answer.status, answer.reason, "link" in answer.headers) == (200, b"OK", False)
    assert await answer.read() == b"ok"


async def test_trailers_are_no_headers(upstream, pool):
    chunks = b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Late: 1\r\n\r\n"
    upstream.answer = b"HTTP/1.1 200 OK\r\n" + chunks
    answer = await pool.send("GET", b"/x", (), b"")
    assert await answer.read() == b"ok"
    assert "x-late" not in answer.headers


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"rubbish\r\n\r\n", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
    ids=["nothing", "half a head", "not HTTP", "another protocol", "two lengths", "a control character", "endless"],
)
async def test_an_answer_that_cannot_be_read_is_lost_and_not_asked_for_again(upstream, pool, answer, eventually):
    upstream.answer, upstream.closes = answer, True
    with pytest.raises(EngineLost):
        await got(pool)
    assert len(upstream.requests) == 1
    await eventually(lambda: not pool.connections)


@pytest.mark.parametrize("framing", [b"Content-Length: 9\r\n\r\nok", b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"])
async def test_a_truncated_body_is_delivered_up_to_the_break_and_then_fails(upstream, pool, framing):
    upstream.answer, upstream.closes = b"HTTP/1.1 200 OK\r\n" + framing, True
    answer = await pool.send("GET", b"/x", (), b"")
    assert await answer.next_piece() == b"ok"
    with pytest.raises(EngineLost):
        await answer.next_piece()


async def asked_together(pool: EnginePool, upstream: Upstream, hinder: Callable[[ClientConnection], None]) -> list[Any]:
    """What becomes of four requests of the same moment, whose connections wait, where one of these is hindered."""
    for answer in await asyncio.gather(*[pool.send("GET", b"/first", (), b"") for _ in range(4)]):
        await answer.read()
    upstream.requests.clear()
    asking = [asyncio.create_task(got(pool, target=b"/%d" % number)) for number in range(4)]
    await asyncio.sleep(0)  # all are asked, and none is sent
    assert len(pool._unsent) == 4
    assert not upstream.requests
    hinder(pool._unsent[1])
    return await asyncio.gather(*asking, return_exceptions=True)


async def test_a_request_that_is_given_up_before_it_is_sent_is_not_sent_and_the_others_of_its_moment_are(
    upstream, pool
):
    def give_up(connection: ClientConnection) -> None:
        assert connection._upstream is not None
        connection._upstream.abort()

    first, second, *rest = await asked_together(pool, upstream, give_up)
    assert [first, *rest] == [(200, b"ok")] * 3
    assert isinstance(second, EngineLost)
    assert sorted(request.split()[1] for request in upstream.requests) == [b"/0", b"/2", b"/3"]


async def test_a_connection_that_takes_no_bytes_fails_its_own_request_alone(upstream, pool):
    def broken(connection: ClientConnection) -> None:
        writes = Mock(side_effect=RuntimeError("the handle is closed"))
        connection.transport = Mock(wraps=connection.transport, writelines=writes)

    first, second, *rest = await asked_together(pool, upstream, broken)
    assert [first, *rest] == [(200, b"ok")] * 3
    assert isinstance(second, RuntimeError)


async def test_where_nobody_listens_nothing_was_sent(free_port):
    with pytest.raises(EngineUnreachable):
        await got(EnginePool(EngineAddress("127.0.0.1", free_port)))


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port whose connections are never taken, with a full backlog, so that further ones get no answer."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


async def test_where_nobody_answers_a_connection_is_waited_for_up_to_its_time(silent_port):
    pool = EnginePool(EngineAddress("127.0.0.1", silent_port), connect_timeout_s=0.1)
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(EngineUnreachable, match="TimeoutError"):
        await got(pool)
    assert asyncio.get_running_loop().time() - began_s >= 0.09
    assert pool.connections == set()


def stand_still(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, factory()], ids=["asyncio", "installed"])
def test_while_our_own_loop_stands_still_no_server_counts_as_silent(loop_factory, monkeypatch):
    monkeypatch.setattr(client, "_connects_at_once", lambda connecting, address: False)

    async def during_a_stall() -> tuple[int, bytes]:
        server = Upstream()
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            pool = EnginePool(EngineAddress("127.0.0.1", port), connect_timeout_s=0.2)
            asking = asyncio.create_task(got(pool))
            await asyncio.sleep(0)  # it has begun to connect
            stand_still(0.5)
            answer = await asking
            pool.close()
            return answer

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(during_a_stall()) == (200, b"ok")


async def test_a_name_is_resolved_and_each_of_its_addresses_tried(upstream):
    pool = EnginePool(EngineAddress("localhost", upstream.port))
    assert await got(pool) == (200, b"ok")
    pool.close()


async def test_an_idle_connection_is_closed_before_the_engine_would(upstream, eventually):
    pool = EnginePool(EngineAddress("127.0.0.1", upstream.port), idle_s=0.01)
    assert await got(pool) == (200, b"ok")
    await eventually(lambda: not pool.connections)
    assert await got(pool) == (200, b"ok")
    assert upstream.connections == 2
    pool.close()


async def test_every_idle_connection_is_closed(upstream, eventually):
    pool = EnginePool(EngineAddress("127.0.0.1", upstream.port), idle_s=0.01)
    await asyncio.gather(*(got(pool) for _ in range(3)))
    assert upstream.connections == 3
    await eventually(lambda: not pool.connections)


async def test_a_connection_that_the_engine_closed_is_not_used(upstream, pool, eventually):
    assert await got(pool) == (200, b"ok")
    (connection,) = pool.connections
    connection.eof_received()
    assert await got(pool) == (200, b"ok")
    assert upstream.connections == 2


async def test_an_answer_that_is_given_up_before_its_head_closes_its_connection(upstream, pool, eventually):
    upstream.answer = b""
    asking = asyncio.create_task(got(pool))
    await eventually(lambda: upstream.requests)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await eventually(lambda: upstream.open == 0)
    assert not pool.connections


async def test_an_answer_that_is_given_up_in_its_body_closes_its_connection(upstream, pool, eventually):
    upstream.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"
    (await pool.send("GET", b"/x", (), b"")).abort()
    await eventually(lambda: upstream.open == 0)
    assert not pool.connections


async def test_unread_data_stays_in_the_socket(upstream, pool, eventually):
    body = bytes(8 * 1024 * 1024)
    upstream.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    answer = await pool.send("GET", b"/x", (), b"")
    (connection,) = pool.connections
    await eventually(lambda: connection._paused)
    assert sum(map(len, answer._pieces)) < 1024 * 1024
    assert await answer.read() == body


async def test_a_sink_that_fails_ends_the_answer_with_what_it_raised(upstream, pool):
    def sink(piece: bytes) -> None:
        raise LookupError

    upstream.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await pool.send("GET", b"/x", (), b"")
    (connection,) = pool.connections
    piping = asyncio.create_task(answer.pipe(sink))
    await asyncio.sleep(0)
    connection.data_received(b"2\r\nok\r\n")
    with pytest.raises(LookupError):
        await piping


async def test_the_end_of_an_answer_is_told_at_once_after_its_last_piece(upstream, pool):
    upstream.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await pool.send("GET", b"/x", (), b"")
    (connection,) = pool.connections
    told: list[bytes] = []
    piping = asyncio.create_task(answer.pipe(told.append, at_end=lambda: told.append(b"end")))
    await asyncio.sleep(0)
    connection.data_received(b"2\r\nok\r\n0\r\n\r\n")
    assert told == [b"ok", b"end"]
    await piping


@pytest.mark.parametrize(("last", "raised"), [(b"2\r\nok\r\n0\r\n\r\n", LookupError), (b"x\r\n", EngineLost)])
async def test_a_lost_answer_has_no_end_and_what_the_end_raises_comes_out(upstream, pool, last, raised):
    def at_end() -> None:
        raise LookupError

    upstream.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await pool.send("GET", b"/x", (), b"")
    (connection,) = pool.connections
    piping = asyncio.create_task(answer.pipe(lambda _: None, at_end=at_end))
    await asyncio.sleep(0)
    connection.data_received(last)
    with pytest.raises(raised):
        await piping


@pytest.mark.parametrize(
    ("text", "address"),
    [("http://127.0.0.1:8001", ("127.0.0.1", 8001)), ("http://h/", ("h", 80)), ("http://[::1]:1", ("::1", 1))],
)
def test_an_address_is_scheme_host_and_port(text, address):
    parsed = EngineAddress.parse(text)
    assert (parsed.host, parsed.port) == address


@pytest.mark.parametrize(
    "text", ["127.0.0.1:1", "https://h", "http://", "http://h/x", "http://h?x", "http://u@h", "http://h:x"]
)
def test_and_nothing_more(text):
    with pytest.raises(ValueError, match=r"."):
        EngineAddress.parse(text)
