"""Reading request bodies: whole, for what is queued may have to be sent later; bounded in bytes and in time."""

from __future__ import annotations

import asyncio

from aiohttp import hdrs
from aiohttp.web import BaseRequest, RequestPayloadError

from uellm.sidecar.outcome import Outcome, Refusal

MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_HELD_BYTES = 256 * 1024 * 1024
BODY_DEADLINE_S = 30.0


class Body:
    """The bytes of one request, counted until `release`."""

    def __init__(self, holder: Bodies) -> None:
        self._holder = holder
        self._held_bytes = 0
        self.content = b""

    def hold(self, size_bytes: int) -> None:
        """Count more bytes. Raises Refusal where they are too many."""
        if self._held_bytes + size_bytes > MAX_BODY_BYTES:
            raise Refusal(Outcome.TOO_LARGE, f"the body is longer than {MAX_BODY_BYTES} bytes")
        if self._holder.held_bytes + size_bytes > self._holder.limit_bytes:
            message = "waiting requests hold all the memory that there is for them; retry later"
            raise Refusal(Outcome.QUEUE_FULL, message, retry_after_s=1)
        self._held_bytes += size_bytes
        self._holder.held_bytes += size_bytes

    def release(self) -> None:
        """The bytes are not needed any more."""
        self._holder.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self.content = b""


class Bodies:
    """All bodies in memory: those being read, queued, and on their way to the engine."""

    def __init__(self, *, limit_bytes: int = MAX_HELD_BYTES, deadline_s: float = BODY_DEADLINE_S) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._deadline_s = deadline_s

    def new(self) -> Body:
        """A body that holds nothing yet. Whoever asks for it releases it."""
        return Body(self)

    async def read(self, request: BaseRequest, body: Body) -> None:
        """Read the request's body into `body`. Raises Refusal."""
        if (length_bytes := request.content_length) is not None and length_bytes > MAX_BODY_BYTES:
            raise Refusal(Outcome.TOO_LARGE, f"the body is {length_bytes} bytes; at most {MAX_BODY_BYTES} are taken")
        if not request.can_read_body:
            return
        await _continue(request)
        try:
            async with asyncio.timeout(self._deadline_s):
                body.content = await _read(request, body)
        except TimeoutError:
            message = f"the body did not arrive within {self._deadline_s:g} s"
            raise Refusal(Outcome.CLIENT_SLOW, message) from None
        except RequestPayloadError as error:
            raise Refusal(Outcome.BAD_REQUEST, "the body's framing is broken") from error


async def _read(request: BaseRequest, body: Body) -> bytes:
    pieces = []
    while piece := await request.content.readany():
        body.hold(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


async def _continue(request: BaseRequest) -> None:
    """Tell a client that asked whether to go on that it may: its headers are acceptable."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
