"""Connections to the one server that requests are sent on to, kept open between requests."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from asyncio import TimerHandle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from uellm.sidecar.http.message import Headers, Pairs

CONNECT_TIMEOUT_S = 10.0
"""Longer than a health check may take: an engine whose backlog is full is silent, not gone."""

IDLE_S = 2.0
"""vLLM closes a connection that was idle for 5 s; a request sent into that moment would be lost."""

RECEIVE_BUFFER_BYTES = 64 * 1024
"""What the kernel may hold of an answer whose reader is slow; bounds what one read of the socket brings."""

UNREAD_BYTES = 64 * 1024
HEAD_BYTES = 64 * 1024

_SocketAddress = tuple[int, tuple[Any, ...]]
"""Family, and what `connect` takes."""

_BODILESS = frozenset((204, 304))


class EngineUnreachable(Exception):
    """No connection: nothing of the request was sent, so it can be tried again."""


class EngineLost(Exception):
    """The connection broke after the request was sent: it may have been run, so it must not be sent again."""


@dataclass(frozen=True)
class EngineAddress:
    """Where the engine listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> EngineAddress:
        """`http://127.0.0.1:8001`. Raises ValueError for anything that is more than scheme, host and port."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(url)
        if parts.username is not None:
            raise ValueError(url)
        return cls(parts.hostname, 80 if parts.port is None else parts.port)

    async def resolve(self) -> list[_SocketAddress]:
        """What a socket can be connected to; an address needs no resolver, and so no thread. Raises OSError."""
        try:
            family = socket.AF_INET if ipaddress.ip_address(self.host).version == 4 else socket.AF_INET6
        except ValueError:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            return [(family, address) for family, _, _, _, address in found]
        return [(family, (self.host, self.port))]


class Upstream:
    """One answer. Its body is had by `pipe`, or piece by piece by `next_piece`; `abort` when it is wanted no more."""

    __slots__ = ("_connection", "_error", "_pieces", "_waiter", "ended", "headers", "reason", "sink", "status")

    def __init__(self, connection: _EngineConnection) -> None:
        self._connection: _EngineConnection | None = connection
        self._pieces: list[bytes] = []
        self.sink: Callable[[bytes], None] | None = None
        """What takes the pieces now; `pipe` sets it, and the sink itself may set another one."""
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self.ended = False
        self.status = 0
        self.reason = b""
        self.headers = Headers([])

    async def head(self) -> None:
        """Wait for status and headers. Raises EngineLost."""
        if not self.status and not self.ended:
            await self._wait()
        if self._error is not None and not self.status:
            raise self._error

    async def pipe(self, sink: Callable[[bytes], None]) -> None:
        """Give every piece to `sink` as it comes, and return at the end. Raises EngineLost, or what `sink` raises."""
        self.sink = sink
        if self._pieces:
            sink(self._take())
        if not self.ended:
            await self._wait()
        if self._error is not None:
            raise self._error

    async def next_piece(self) -> bytes:
        """The body's next bytes; none at its end. Raises EngineLost once what came before has been had."""
        while not self._pieces and not self.ended:
            await self._wait()
        if self._pieces:
            return self._take()
        if self._error is not None:
            raise self._error
        return b""

    def hold(self) -> None:
        """Read no more of it, until `go_on`."""
        if self._connection is not None:
            self._connection.pause()

    def go_on(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()

    def abort(self, error: Exception | None = None) -> None:
        """End it: the connection is cut unless the answer was complete. Who waits for it gets `error`."""
        connection = self._connection
        self.end(error or EngineLost("given up"))
        if connection is not None:
            connection.cut()

    def keep(self, piece: bytes) -> None:
        """The connection has more of the body, and there is no sink yet."""
        if not self.ended:
            self._pieces.append(piece)
            if sum(map(len, self._pieces)) > UNREAD_BYTES:
                self.hold()
            self._wake()

    def begin(self, status: int, reason: bytes, headers: Headers) -> None:
        """The connection has the head."""
        self.status, self.reason, self.headers = status, reason, headers
        self._wake()

    def end(self, error: Exception | None) -> None:
        """The connection has nothing more for it."""
        if not self.ended:
            self.ended = True
            self._error = error
            self._connection = self.sink = None
            self._wake()

    def _take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        self.go_on()
        return b"".join(pieces)

    async def read(self) -> bytes:
        """The whole body. Raises EngineLost."""
        pieces = []
        while piece := await self.next_piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _EngineConnection(asyncio.Protocol):
    """One connection; at most one request is on it."""

    transport: asyncio.Transport

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool
        self._upstream: Upstream | None = None
        self._paused = False
        self.idle_alarm: TimerHandle | None = None
        self.closed = False
        self._expect(head_only=False)

    def ask(self, head: bytes, body: bytes, *, head_only: bool) -> Upstream:
        """Send a request."""
        self._expect(head_only=head_only)
        upstream = self._upstream = Upstream(self)
        self.transport.writelines((head, body) if body else (head,))
        return upstream

    def _expect(self, *, head_only: bool) -> None:
        self._head_only = head_only
        self._reason = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._last_pieces = 0
        self.on_body = self._pieces.append  # httptools calls it for every piece: no frame of ours between
        self._head_bytes = 0
        self._in_body = self._sized = self._complete = self._reusable = False
        self._parser = httptools.HttpResponseParser(self)

    def pause(self) -> None:
        """Leave the socket alone."""
        if not self._paused and not self.closed:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._paused and not self.closed:
            self._paused = False
            self.transport.resume_reading()

    def cut(self) -> None:
        """Close at once: to vLLM that is the word to stop the request."""
        self.closed = True
        self.transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast(asyncio.Transport, transport)
        self._pool.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """More of an answer."""
        upstream = self._upstream
        if upstream is None:
            self.cut()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._complete:
                self._lost("the answer cannot be read as HTTP")
                return
            self._reusable = False
        if self._complete:
            self._last_of(upstream)
        elif self._in_body:
            self._deliver(upstream)
        else:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._lost("the answer's headers are too long")

    def _deliver(self, upstream: Upstream) -> None:
        if not (pieces := self._pieces):
            return
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        try:
            (upstream.sink or upstream.keep)(piece)
        except Exception as error:
            upstream.abort(error)

    def _last_of(self, upstream: Upstream) -> None:
        del self._pieces[self._last_pieces :]  # what follows is not of this answer
        self._deliver(upstream)
        if self._upstream is upstream:
            self._done(upstream)

    def eof_received(self) -> None:
        """The engine closes: no further request goes this way."""
        self.closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by whomever."""
        self.closed = True
        self._pool.forget(self)
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            whole = self._in_body and not self._sized and exc is None
            upstream.end(None if whole else EngineLost("the engine closed the connection"))

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A message, or one more than was asked for."""
        if self._complete:
            self._reusable = False

    def on_status(self, reason: bytes) -> None:
        """The text behind the status."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field; those of trailers are dropped."""
        if not self._in_body:
            self._fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head is there, be it one that only announces another."""
        status = self._parser.get_status_code()
        if self._complete:
            return
        if status < 200:
            self._reason, self._fields = b"", []
            return
        self._in_body = True
        names = {name.lower() for name, _ in self._fields}
        self._sized = self._head_only or not names.isdisjoint((b"content-length", b"transfer-encoding"))
        self._reusable = self._sized or status in _BODILESS
        if self._upstream is not None:
            self._upstream.begin(status, self._reason, Headers(self._fields))
        if self._head_only:
            self._complete, self._reusable = True, False  # the parser does not know it, and waits for a body

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was one that only announces another."""
        if self._in_body and not self._complete:
            self._complete = True
            self._last_pieces = len(self._pieces)

    # Ends.

    def _done(self, upstream: Upstream) -> None:
        self._upstream = None
        upstream.end(None)
        keep = self._reusable and self._keep_alive() and not self.transport.get_write_buffer_size()
        if keep and not self.closed:
            self.resume()
            self._pool.give_back(self)
        else:
            self.transport.close()

    def _keep_alive(self) -> bool:
        options = b",".join(value for name, value in self._fields if name.lower() == b"connection").lower()
        return b"close" not in options and self._parser.get_http_version() == "1.1"

    def _lost(self, message: str) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.end(EngineLost(message))
        self.cut()


class EnginePool:
    """Connections to one server."""

    def __init__(self, address: EngineAddress, *, idle_s: float = IDLE_S) -> None:
        self._address = address
        self._idle_s = idle_s
        self._idle: list[_EngineConnection] = []
        self.connections: set[_EngineConnection] = set()

    @property
    def in_use(self) -> int:
        """Connections with a request on them."""
        return len(self.connections) - len(self._idle)

    async def send(self, method: str, target: bytes, headers: Pairs, body: bytes) -> Upstream:
        """Send a request; returns once the answer's head is there. Raises EngineUnreachable, EngineLost.

        `headers` holds neither Content-Length nor Transfer-Encoding: the body is whole. The caller ends the answer:
        it reads to the end, or aborts.
        """
        connection = self._rested() or await self._connect()
        lines = [b"%b %b HTTP/1.1" % (method.encode("ascii"), target)]
        lines += [b"%b: %b" % field for field in headers]
        if not any(name.lower() == b"host" for name, _ in headers):
            lines.append(f"Host: {self._address.host}:{self._address.port}".encode())
        if body or method in ("POST", "PUT", "PATCH"):
            lines.append(b"Content-Length: %d" % len(body))
        upstream = connection.ask(b"\r\n".join(lines) + b"\r\n\r\n", body, head_only=method == "HEAD")
        try:
            await upstream.head()
        except BaseException:
            upstream.abort()
            raise
        return upstream

    def close(self) -> None:
        """Cut every connection."""
        for connection in tuple(self.connections):
            connection.cut()

    def give_back(self, connection: _EngineConnection) -> None:
        """A connection is free for the next request."""
        self._idle.append(connection)
        connection.idle_alarm = asyncio.get_running_loop().call_later(self._idle_s, self._expire, connection)

    def forget(self, connection: _EngineConnection) -> None:
        """A connection was closed."""
        self.connections.discard(connection)
        if connection.idle_alarm is not None:
            connection.idle_alarm.cancel()
            self._idle.remove(connection)
            connection.idle_alarm = None

    def _rested(self) -> _EngineConnection | None:
        """The idle connection that was used last, for it lives longest."""
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_alarm is not None:
                connection.idle_alarm.cancel()
                connection.idle_alarm = None
            if not connection.closed:
                return connection
        return None

    def _expire(self, connection: _EngineConnection) -> None:
        self._idle.remove(connection)
        connection.idle_alarm = None
        connection.transport.close()

    async def _connect(self) -> _EngineConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connected = await _first(await self._address.resolve())
                _, connection = await loop.create_connection(lambda: _EngineConnection(self), sock=connected)
        except (OSError, TimeoutError) as error:
            raise EngineUnreachable(type(error).__name__) from error
        return connection


async def _first(addresses: Sequence[_SocketAddress]) -> socket.socket:
    """A socket connected to the first address that takes it. Raises OSError."""
    refused: OSError | None = None
    for family, address in addresses:
        connecting = socket.socket(family, socket.SOCK_STREAM)
        connecting.setblocking(False)
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(connecting, address)
        except OSError as error:
            refused = error
            connecting.close()
        except BaseException:
            connecting.close()
            raise
        else:
            return connecting
    raise refused or OSError("no address")
