"""The answer to a client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from uellm.http.message import Pairs, lines_of

_BODILESS = frozenset((204, 304))
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class _ReplyConnection(Protocol):
    """What an answer needs of its connection."""

    writing_paused: bool
    closed: bool
    loop: asyncio.AbstractEventLoop

    @property
    def unread(self) -> bool: ...

    @property
    def transport(self) -> asyncio.WriteTransport: ...

    def abort(self) -> None: ...

    def tunnel(self, take: Callable[[bytes], None]) -> None: ...

    def pause_tunnel(self) -> None: ...

    def resume_tunnel(self) -> None: ...


_VERSION = b"HTTP/1.1 "


class Reply:
    """One answer: `start`, any number of `write`, `finish`; or `send` for all of it; or `abort`.

    Writing never waits. A writer of much data checks `paused`, sets `on_pause` and `on_resume`, or awaits `drain`.
    Data for a client that disconnected is dropped.
    """

    __slots__ = (
        *("_head", "_head_only", "_http_10", "_probed_bytes", "_send", "_waiter", "chunked", "close", "finished"),
        *("link", "on_pause", "on_resume", "started"),
    )

    def __init__(self, link: _ReplyConnection, *, http_10: bool, head_only: bool, close: bool) -> None:
        self.link = link
        """Its connection."""
        self._http_10 = http_10
        self._head_only = head_only
        self._send = link.transport.write
        self.chunked = False
        """The body goes in chunks; known from `start` on."""
        self._head = b""
        """The head, and what else is sent together with the next bytes."""
        self._probed_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self.close = close
        """The connection is closed after this answer. May be set until `start`."""
        self.started = False
        self.finished = False
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    @property
    def closed(self) -> bool:
        """The client disconnected."""
        return self.link.closed

    @property
    def paused(self) -> bool:
        """The write buffer is full because the client reads slowly."""
        return self.link.writing_paused

    def start(self, status: int, headers: Pairs, reason: bytes = b"", *, body_follows: bool = False) -> None:
        """Send the head. Without a Content-Length the body is chunked, or ends with the connection (HTTP/1.0).

        The head is sent together with the first bytes of the body if they are there in this turn of the event loop.
        `body_follows`: the caller writes them, finishes the answer, or calls `send_head_soon`.
        """
        has_body = status not in _BODILESS and not self._head_only
        lines, sized = lines_of(headers, b"content-length")
        endless = has_body and not sized
        self.chunked = endless and not self._http_10
        if (endless and self._http_10) or self.link.unread:
            self.close = True
        framing = b"Transfer-Encoding: chunked\r\n" if self.chunked else b""
        if self.close:
            framing += b"Connection: close\r\n"
        elif self._http_10:
            framing += b"Connection: keep-alive\r\n"
        head = b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, reason or _PHRASES.get(status, b""), lines, framing)
        self._head_only = not has_body
        self.started = True
        self._head = head[self._probed_bytes :]
        if not body_follows:
            self.send_head_soon()

    def send_head_soon(self) -> None:
        """Send the head in the next turn of the event loop, alone if no bytes of the body are there by then."""
        if self._head:
            self.link.loop.call_soon(self._put, b"")

    def write(self, piece: bytes, *, end_follows: bool = False) -> None:
        """Send a piece of the body. `end_follows`: the caller finishes the answer at once, and so both are sent."""
        if not piece or self._head_only:
            return
        if self.chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        if end_follows:
            self._head += piece
        elif self._head or self.link.closed:
            self._put(piece)
        else:
            self._send(piece)

    def finish(self) -> None:
        """The body is complete."""
        self._put(b"0\r\n\r\n" if self.chunked else b"")
        self.finished = True

    def send(self, status: int, headers: Pairs, body: bytes) -> None:
        """Send a complete answer of our own."""
        own = [*headers, (b"Date", formatdate(usegmt=True).encode()), (b"Content-Length", b"%d" % len(body))]
        self.start(status, own, body_follows=True)
        self.write(body)
        self.finish()

    def switch(self, headers: Pairs, reason: bytes, take: Callable[[bytes], None]) -> None:
        """Answer 101. From now on `write` sends bytes as they are, and the client's go to `take`."""
        lines, _ = lines_of(headers, b"")
        self.started = self.close = True
        self._put(b"HTTP/1.1 101 %b\r\n%b\r\n" % (reason, lines))
        self.link.tunnel(take)

    def probe(self) -> None:
        """Send a byte of the answer early, so that a client that has left answers with a reset.

        Of the status line, or of the next chunk's size, which may begin with zeros.
        """
        if self.link.closed or self.finished or self._head:
            return
        if not self.started and self._probed_bytes < len(_VERSION):
            self._send(_VERSION[self._probed_bytes : self._probed_bytes + 1])
            self._probed_bytes += 1
        elif self.started and self.chunked:
            self._send(b"0")

    def abort(self) -> None:
        """Cut the connection, so that a partial answer is not taken for a complete one."""
        self.link.abort()

    async def drain(self) -> None:
        """Wait until the client has read most of what was written."""
        while self.link.writing_paused and not self.link.closed:
            self._waiter = self.link.loop.create_future()
            await self._waiter

    def pause(self) -> None:
        """Called by the connection: the write buffer is full."""
        if self.on_pause is not None:
            self.on_pause()

    def resume(self) -> None:
        """Called by the connection: the write buffer has drained, or the client disconnected."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.on_resume is not None:
            self.on_resume()

    def _put(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        if data and not self.link.closed:
            self._send(data)
