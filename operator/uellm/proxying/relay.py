"""Relays an engine's answer to the client: each piece as it comes, byte for byte, as fast as the client reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Protocol

from uellm.http import BLANK, EngineLost, Pairs, Reply, Upstream
from uellm.proxying.outcome import COMPLETED, STATUS, RequestOutcome, error_object, of_engine_status
from uellm.proxying.record import RequestRecord
from uellm.proxying.routes import end_to_end

STALL_S = 60.0
"""Time after which a client that reads nothing is cut off, because it occupies a place at the engine."""

_DONE = b"data: [DONE]\n\n"
_DONE_BYTES = len(_DONE)
_ENDED_BY_DONE = frozenset(("/v1/chat/completions", "/v1/completions"))


class Tap(Protocol):
    """Processes every piece of an answer and decides what the client gets."""

    def piece(self, piece: bytes) -> bytes:
        """Take a piece. Returns the bytes to send now, mostly the piece itself."""

    def count(self, piece: bytes) -> None:
        """Count the tokens of the same piece, after it was sent."""

    def chunk_sink(self) -> Callable[[bytes], bool] | None:
        """A function that takes the next whole events, for `Upstream.pass_chunks`. None: they go through `piece`."""

    def held_back(self) -> bytes:
        """The bytes that were held back, at the end of the answer."""


class Relay:
    """Relays one answer. `run` returns when the answer was sent or was cut short."""

    __slots__ = (
        *("_bytes_out", "_chunks_allowed", "_end_follows", "_last", "_loop", "_record", "_reply", "_stall"),
        *("_stall_s", "_streams_events", "_tap", "_upstream"),
    )

    def __init__(
        self,
        reply: Reply,
        upstream: Upstream,
        record: RequestRecord,
        *,
        stall_s: float = STALL_S,
        tap: Tap | None = None,
    ) -> None:
        self._reply = reply
        self._upstream = upstream
        self._record = record
        self._stall_s = stall_s
        self._tap = tap
        self._loop = reply.link.loop
        self._stall: asyncio.TimerHandle | None = None
        self._bytes_out = 0
        self._last = b""
        """The last bytes sent, enough to recognise the end of an event and of a stream."""
        self._streams_events = upstream.streams_events
        self._end_follows = False
        """The last piece came together with the end of the answer, and waits for it."""
        self._chunks_allowed = False
        """Whether events may be sent in the chunks that they come in."""

    async def run(self, own: Pairs) -> None:
        """Relay the whole answer with the additional headers `own`. Sets the record's outcome."""
        upstream, reply, record = self._upstream, self._reply, self._record
        fields = end_to_end(upstream.headers, own)
        fields += own
        reply.start(upstream.status, fields, upstream.reason, body_follows=True)
        record.status = upstream.status
        self._chunks_allowed = self._streams_events and reply.chunked and self._tap is not None
        reply.on_pause, reply.on_resume = self._hold, self._go_on
        if reply.link.writing_paused:
            self._hold()
        try:
            first = self._first if self._streams_events else self._send
            await upstream.pipe(first, reply.send_head_soon, self._finish_at_once)
        except EngineLost:
            record.outcome = RequestOutcome.ENGINE_LOST
            self._flush()
            self._engine_lost()
        except TimeoutError:
            record.outcome = RequestOutcome.CLIENT_SLOW
            reply.abort()
        else:
            if not reply.finished:
                self._finish()
            record.outcome = of_engine_status(upstream.status)
        finally:
            record.done = self._last.endswith(_DONE)
            if record.outcome is COMPLETED and self._streams_events and not self._is_whole():
                record.outcome = RequestOutcome.ENGINE_LOST
            record.bytes_out = self._bytes_out
            reply.on_pause = reply.on_resume = None
            if self._stall is not None:
                self._stop_clock()

    def _first(self, piece: bytes) -> None:
        self._record.first_byte_s = self._loop.time() - self._record.arrival_s
        self._upstream.sink = self._send
        self._send(piece)

    def _send(self, piece: bytes) -> None:
        tap = self._tap
        if tap is None:
            self._put(piece)
            return
        if sent := tap.piece(piece):
            self._put(sent)
        tap.count(piece)
        if self._chunks_allowed and not self._upstream.complete:
            self._upstream.pass_chunks(tap.chunk_sink() if sent and piece.endswith(BLANK) else None)

    def _put(self, piece: bytes) -> None:
        size = len(piece)
        self._bytes_out += size
        self._last = piece if size >= _DONE_BYTES else (self._last + piece)[-_DONE_BYTES:]
        # The last piece and the end are sent in one write, so in one system call.
        self._end_follows = self._upstream.complete
        self._reply.write(piece, end_follows=self._end_follows)

    def _finish_at_once(self) -> None:
        """Send what waits for the end. An end that comes alone is sent by the task.

        It may be the first write that tells of a client that left after the last piece. The task knows by then that the
        answer was complete, and the request does not count as given up by its client.
        """
        if self._end_follows:
            self._finish()

    def _finish(self) -> None:
        """End the answer."""
        self._flush()
        self._reply.finish()

    def _flush(self) -> None:
        if self._tap is not None and (rest := self._tap.held_back()):
            self._put(rest)

    def _hold(self) -> None:
        self._upstream.hold()
        self._stop_clock()
        self._stall = self._loop.call_later(self._stall_s, self._upstream.abort, TimeoutError())

    def _go_on(self) -> None:
        self._stop_clock()
        self._upstream.go_on()

    def _stop_clock(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _is_whole(self) -> bool:
        """Whether a stream that ended well has its last event, for a server that is ended may end it well before."""
        record = self._record
        return record.done or record.route not in _ENDED_BY_DONE or "content-encoding" in self._upstream.headers

    def _engine_lost(self) -> None:
        """End a stream of events with an error event. Cut any other answer, so that no client takes it as complete."""
        if not self._streams_events:
            self._reply.abort()
            return
        boundary = b"" if not self._last or self._last.endswith(b"\n\n") else b"\n\n"
        self._last = b""
        event = boundary + error_event(self._record.route)
        self._bytes_out += len(event)
        self._reply.write(event)
        self._reply.finish()


def error_event(route: str) -> bytes:
    """The server-sent event for a broken stream, in the form that the route's clients expect."""
    message = "the engine stopped before the answer was complete; send the request again"
    document = error_object(RequestOutcome.ENGINE_LOST, message, STATUS[RequestOutcome.ENGINE_LOST])
    if route == "/v1/messages":
        return f"event: error\ndata: {json.dumps({'type': 'error', **document})}\n\n".encode()
    return f"data: {json.dumps(document)}\n\n".encode()
