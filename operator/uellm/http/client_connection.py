"""A connection to the engine: at most one request at a time, and exactly one answer is accepted for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from uellm.http.chunks import BLANK, BLANK_END, EVENTS_END, NO_LINE, SIZE_LINES
from uellm.http.message import Headers
from uellm.http.upstream import EngineLost, Upstream

HEAD_BYTES = 64 * 1024

_BODILESS = frozenset((204, 304))
_NO_PARSER = httptools.HttpResponseParser(object())
"""Stands where a connection had its parser. It is given no data."""
_SIZES = frozenset((b"content-length", b"transfer-encoding"))
"""Fields that tell where a body ends."""


class _Pool(Protocol):
    """What a connection needs of its pool."""

    connections: set[ClientConnection]

    def send_soon(self, connection: ClientConnection) -> None: ...

    def give_back(self, connection: ClientConnection) -> None: ...

    def forget(self, connection: ClientConnection) -> None: ...


class ClientConnection(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        *("_between", "_complete", "_fields", "_head_bytes", "_head_only", "_in_body", "_last_pieces", "_parser"),
        *("_paused", "_pieces", "_pool", "_reason", "_request", "_reusable", "_sized", "_switched", "_switches"),
        "_upstream",
        *("closed", "idle_since_s", "loop", "on_body", "take_chunk", "transport"),
    )

    transport: asyncio.Transport

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self.loop = asyncio.get_running_loop()
        self._upstream: Upstream | None = None
        self._request: tuple[bytes, ...] = ()
        """What is to be sent."""
        self._paused = False
        self.idle_since_s: float | None = None
        """Set by the pool. None: a request is in progress, or the connection is not in the pool."""
        self.closed = False
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # httptools calls it directly for every piece, which saves a Python frame
        self._parser = httptools.HttpResponseParser(self)
        """Reads one answer after the other: to make one costs as much as all that it does for an answer."""
        self._expect(head_only=False, switches=False)

    def ask(self, head: bytes, body: bytes, *, head_only: bool, switches: bool = False) -> Upstream:
        """Send a request, as the pool says when. `switches`: it asks for another protocol, so 101 is an answer."""
        self._expect(head_only=head_only, switches=switches)
        upstream = self._upstream = Upstream(self)
        self._request = (head, body) if body else (head,)
        self._pool.send_soon(self)
        return upstream

    def send(self) -> None:
        """Send the request now, unless it was given up or the connection is closed. Raises nothing."""
        request, self._request = self._request, ()
        if self._upstream is None or self.closed:
            return
        try:
            self.transport.writelines(request)
        except Exception as error:
            self._upstream.abort(error)

    def _expect(self, *, head_only: bool, switches: bool) -> None:
        self._head_only, self._switches, self._switched = head_only, switches, False
        self._reason = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._pieces.clear()
        self._last_pieces = self._head_bytes = 0
        self._in_body = self._sized = self._complete = self._reusable = False
        self._between = False
        """What was parsed last ended with a chunk that ended with a whole event."""
        self.take_chunk: Callable[[bytes], bool] | None = None
        """Takes a chunk of whole events, framing included; False: give it to the parser."""

    def pause(self) -> None:
        """Stop reading from the socket."""
        if not self._paused and not self.closed:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Resume reading."""
        if self._paused and not self.closed:
            self._paused = False
            self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send bytes in the protocol that the connection switched to."""
        if not self.closed:
            self.transport.write(data)

    def cut(self) -> None:
        """Close at once; vLLM then aborts the request."""
        self.closed = True
        self.transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is established."""
        self.transport = cast(asyncio.Transport, transport)
        if not self.closed:  # nobody has given up waiting for it
            self._pool.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        upstream = self._upstream
        if upstream is None:
            self.cut()  # data without a request
            return
        try:
            # Nearly every piece of a stream is one whole chunk, which can be passed on without parsing.
            passed = (
                (take := self.take_chunk) is not None
                and self._between
                and data.endswith(EVENTS_END)
                and data.startswith(SIZE_LINES.get(len(data), NO_LINE))
                and take(data)
            )
        except Exception as error:
            upstream.abort(error)
        else:
            if not passed:
                self._parse(upstream, data)

    def _parse(self, upstream: Upstream, data: bytes) -> None:
        if self._switched:
            self._pieces.append(data)
            self._deliver(upstream)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._in_body and self._switches and not self._complete:
                self._switched = True
                self._pieces[:] = [data[upgrade.args[0] :]] if upgrade.args[0] < len(data) else []
            else:
                self._reusable = False
        except httptools.HttpParserError:
            if not self._complete:
                self._lost("the answer cannot be read as HTTP")
                return
            self._reusable = False
        if self._complete:
            self._last_of(upstream)
        elif self._in_body:
            # A piece with a blank line at its end, then the line end of its chunk. Nothing of the next chunk has come,
            # because no line between chunks has a newline of its own.
            pieces = self._pieces
            self._between = data.endswith(BLANK_END) and bool(pieces) and pieces[-1].endswith(BLANK)
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
        del self._pieces[self._last_pieces :]  # what follows does not belong to this answer
        upstream.complete = True
        self._deliver(upstream)
        if self._upstream is upstream:
            self._done(upstream)

    def pause_writing(self) -> None:
        """The write buffer is full."""
        if self._upstream is not None and self._upstream.on_pause is not None:
            self._upstream.on_pause()

    def resume_writing(self) -> None:
        """The write buffer has drained."""
        if self._upstream is not None and self._upstream.on_resume is not None:
            self._upstream.on_resume()

    def eof_received(self) -> None:
        """The engine closes the connection; it takes no further request."""
        self.closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by either side."""
        self.closed = True
        self._pool.forget(self)
        upstream, self._upstream = self._upstream, None
        self._parser = _NO_PARSER  # breaks a reference cycle that only the garbage collector could free
        if upstream is not None:
            whole = self._in_body and not self._sized and exc is None
            upstream.end(None if whole else EngineLost("the engine closed the connection"))

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A message begins; a second one was not requested."""
        if self._complete:
            self._reusable = False

    def on_status(self, reason: bytes) -> None:
        """The reason phrase."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field; trailers are dropped."""
        if not self._in_body:
            self._fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head is complete; an informational one (1xx) is followed by another."""
        status = self._parser.get_status_code()
        if self._complete:
            return
        if status < 200 and not (status == 101 and self._switches):
            self._reason, self._fields = b"", []
            return
        self._in_body = True
        headers = Headers(self._fields)
        self._sized = self._head_only or headers.has_any(_SIZES)
        self._reusable = (self._sized or status in _BODILESS) and self._keep_alive(headers)
        if self._upstream is not None:
            self._upstream.begin(status, self._reason, headers)
        if self._head_only:
            self._complete, self._reusable = True, False  # the parser does not know that HEAD has no body

    def on_message_complete(self) -> None:
        """The answer is complete, unless it was an informational one."""
        if self._in_body and not self._complete and self._parser.get_status_code() != 101:
            self._complete = True
            self._last_pieces = len(self._pieces)
            # The parser goes by more than the fields of the head, and would read no further answer.
            self._reusable = self._reusable and self._parser.should_keep_alive()

    # Ends.

    def _done(self, upstream: Upstream) -> None:
        self._upstream = None
        upstream.end(None)
        if self._reusable and not self.closed and not self.transport.get_write_buffer_size():
            if self._paused:
                self.resume()
            self._pool.give_back(self)
        else:
            self.transport.close()

    def _keep_alive(self, headers: Headers) -> bool:
        if self._parser.get_http_version() != "1.1":
            return False
        return "connection" not in headers or "close" not in ",".join(headers.get_all("connection")).lower()

    def _lost(self, message: str) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.end(EngineLost(message))
        self.cut()
