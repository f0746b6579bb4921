"""An answer of the engine as it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from uellm.http.message import Headers

UNREAD_BYTES = 64 * 1024


_EVENTS = "text/event-stream"
_NO_HEADERS = Headers([])


class EngineUnreachable(Exception):
    """No connection: nothing of the request was sent, so it can be sent again."""


class EngineLost(Exception):
    """The connection broke after the request was sent: it may have been executed, so it must not be sent again."""


class _AnswerConnection(Protocol):
    """What an answer needs of its connection."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cut(self) -> None: ...

    def write(self, data: bytes) -> None: ...

    take_chunk: Callable[[bytes], bool] | None
    loop: asyncio.AbstractEventLoop


class Upstream:
    """One answer. Its body is read by `pipe`, or piece by piece by `next_piece`; `abort` ends it early."""

    __slots__ = (
        *("_connection", "_error", "_loop", "_pieces", "_waiter", "at_end", "complete", "ended", "headers"),
        *("on_pause", "on_resume", "reason", "sink", "status", "streams_events"),
    )

    def __init__(self, connection: _AnswerConnection) -> None:
        self._connection: _AnswerConnection | None = connection
        self._loop = connection.loop
        self._pieces: list[bytes] = []
        self.sink: Callable[[bytes], None] | None = None
        """Receives the pieces. Set by `pipe`; the sink itself may set another one."""
        self.at_end: Callable[[], None] | None = None
        """Called when the answer is complete, after its last piece and in the same turn of the event loop."""
        self.on_pause: Callable[[], None] | None = None
        """Called when what `write` sends fills the write buffer."""
        self.on_resume: Callable[[], None] | None = None
        """Called when the write buffer has drained."""
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self.complete = False
        """All of it has arrived: the piece that the sink gets now is the last one."""
        self.ended = False
        self.status = 0
        self.reason = b""
        self.headers = _NO_HEADERS
        self.streams_events = False
        """Whether the body consists of server-sent events."""

    async def head(self) -> None:
        """Wait for status and headers. Raises EngineLost."""
        if not self.status and not self.ended:
            await self._next_change()
        if self._error is not None and not self.status:
            raise self._error

    async def pipe(
        self,
        sink: Callable[[bytes], None],
        before_wait: Callable[[], None] | None = None,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        """Give every piece to `sink` as it arrives; return at the end. Raises EngineLost, or what the three raise.

        `before_wait` is called when the sink has what was there already, and more is to come; `at_end` when the answer
        is complete, unless it was before the call.
        """
        self.sink = sink
        try:
            if self._pieces:
                sink(self._take())
            if not self.ended:
                if before_wait is not None:
                    before_wait()
                self.at_end = at_end
                await self._next_change()
        finally:
            self.sink = self.at_end = None  # they know us: left so, only the collector could free them
        if self._error is not None:
            raise self._error

    async def next_piece(self) -> bytes:
        """The next bytes of the body; empty at its end. Raises EngineLost after all received bytes were read."""
        while not self._pieces and not self.ended:
            await self._next_change()
        if self._pieces:
            return self._take()
        if self._error is not None:
            raise self._error
        return b""

    def pass_chunks(self, take: Callable[[bytes], bool] | None) -> None:
        """From now on offer each chunk of whole events to `take`, framing included; None: stop that.

        Chunks that it does not take, and all other data, go to the sink.
        """
        if self._connection is not None:
            self._connection.take_chunk = take

    def write(self, data: bytes) -> None:
        """Send bytes in the protocol that a 101 switched to."""
        if self._connection is not None:
            self._connection.write(data)

    def hold(self) -> None:
        """Stop reading until `go_on`."""
        if self._connection is not None:
            self._connection.pause()

    def go_on(self) -> None:
        """Resume reading."""
        if self._connection is not None:
            self._connection.resume()

    def abort(self, error: Exception | None = None) -> None:
        """End the answer; the connection is cut unless the answer was complete. A waiting reader gets `error`."""
        if self.ended:
            return
        connection = self._connection
        self.end(error or EngineLost("aborted"))
        if connection is not None:
            connection.cut()

    def keep(self, piece: bytes) -> None:
        """The connection received a piece of the body and there is no sink yet."""
        if not self.ended:
            self._pieces.append(piece)
            if sum(map(len, self._pieces)) > UNREAD_BYTES:
                self.hold()
            self._wake()

    def begin(self, status: int, reason: bytes, headers: Headers) -> None:
        """The connection received the head."""
        self.status, self.reason, self.headers = status, reason, headers
        content_type = headers.get("content-type") or ""
        self.streams_events = content_type == _EVENTS or content_type.partition(";")[0].strip().lower() == _EVENTS
        self._wake()

    def end(self, error: Exception | None) -> None:
        """The answer ended, with `error` or completely."""
        if not self.ended:
            self.ended = True
            self._error = error
            if self._connection is not None:
                self._connection.take_chunk = None
            self._connection = self.sink = None
            if self.at_end is not None and error is None:
                try:
                    self.at_end()
                except Exception as failure:
                    self._error = failure
            self._wake()

    def _take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        self.go_on()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self) -> bytes:
        """The whole body. Raises EngineLost."""
        pieces = []
        while piece := await self.next_piece():
            pieces.append(piece)
        return b"".join(pieces)

    def _next_change(self) -> asyncio.Future[None]:
        """What to await for the head, more of the body, or the end."""
        waiter = self._waiter = self._loop.create_future()
        return waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
