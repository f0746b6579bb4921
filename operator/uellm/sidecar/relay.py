"""An engine's answer on its way to the client: each piece as it comes, byte for byte, as fast as the client reads."""

from __future__ import annotations

import asyncio
import json
from typing import cast

import aiohttp
from aiohttp import ClientResponse, StreamReader
from aiohttp.http import StreamWriter
from aiohttp.web import BaseRequest, StreamResponse

from uellm.sidecar.outcome import STATUS, Outcome, error_object, of_engine_status
from uellm.sidecar.record import Record
from uellm.sidecar.routes import end_to_end

STALL_S = 60.0
"""How long a client may read nothing at all before its stream is cut: it keeps a place at the engine from others."""

_EVENT_STREAM = "text/event-stream"
_DONE = b"data: [DONE]\n\n"


class _Prompt(StreamResponse):
    """An answer whose body comes right after its headers: both leave in one write, as with aiohttp's Response."""

    _send_headers_immediately = False


class Relay:
    """One answer. `run` ends when the client has it, or raises what ended it before."""

    def __init__(
        self, request: BaseRequest, upstream: ClientResponse, record: Record, *, stall_s: float = STALL_S
    ) -> None:
        self._request = request
        self._upstream = upstream
        self._record = record
        self._stall_s = stall_s
        self._last = b""
        """The last bytes that were sent, as many as it takes to recognise the end of an event and of a stream."""

    async def run(self, extra_headers: dict[str, str], *, close: bool) -> StreamResponse:
        """Relay the whole answer; `close` ends the client's connection after it. The record gets its outcome.

        Raises ConnectionError when the client is gone.
        """
        headers = end_to_end(self._upstream.headers)
        headers.update(extra_headers)
        kind = StreamResponse if self._streams_events else _Prompt
        response = kind(status=self._upstream.status, reason=self._upstream.reason, headers=headers)
        if close:
            response.force_close()
        self._record.status = response.status
        writer = cast(StreamWriter, await response.prepare(self._request))
        try:
            outcome = await self._pieces(writer)
        except TimeoutError:
            self._abort()
            outcome = Outcome.CLIENT_SLOW
        self._record.outcome = outcome
        if outcome is not Outcome.CLIENT_SLOW and (outcome is not Outcome.ENGINE_LOST or self._streams_events):
            await response.write_eof()
        return response

    @property
    def _streams_events(self) -> bool:
        return self._upstream.content_type == _EVENT_STREAM

    async def _pieces(self, writer: StreamWriter) -> Outcome:
        content: StreamReader = self._upstream.content
        while True:
            try:
                piece = await content.readany()
            except (aiohttp.ClientError, OSError):
                await self._engine_lost(writer)
                return Outcome.ENGINE_LOST
            if not piece:
                return of_engine_status(self._upstream.status)
            if self._record.first_byte_s is None and self._streams_events:
                self._record.first_byte_s = asyncio.get_running_loop().time() - self._record.arrival_s
            await self._send(writer, piece)

    async def _send(self, writer: StreamWriter, piece: bytes) -> None:
        self._last = (self._last + piece if len(piece) < len(_DONE) else piece)[-len(_DONE) :]
        self._record.bytes_out += len(piece)
        self._record.done = self._last == _DONE
        await writer.write(piece, drain=False)
        if self._request.protocol.writing_paused:
            async with asyncio.timeout(self._stall_s):
                await writer.drain()

    async def _engine_lost(self, writer: StreamWriter) -> None:
        """A stream of events gets a last one that says so; another answer is cut, so that nobody takes it for whole."""
        if not self._streams_events:
            self._abort()
            return
        boundary = b"" if not self._last or self._last.endswith(b"\n\n") else b"\n\n"
        await self._send(writer, boundary + error_event(self._record.route))

    def _abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


def error_event(route: str) -> bytes:
    """The server-sent event that tells a client its stream is broken, in the form that the route's own clients know."""
    message = "the engine stopped before the answer was complete; send the request again"
    document = error_object(Outcome.ENGINE_LOST, message, STATUS[Outcome.ENGINE_LOST])
    if route == "/v1/messages":
        return f"event: error\ndata: {json.dumps({'type': 'error', **document})}\n\n".encode()
    return f"data: {json.dumps(document)}\n\n".encode()
