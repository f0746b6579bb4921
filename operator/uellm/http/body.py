"""The body of an incoming request, collected completely because a queued request is sent later."""

from __future__ import annotations

import asyncio

from uellm.http.head import HeadParser
from uellm.http.message import Budget, Fault

FRAMING_BYTES = 64 * 1024
"""Limit on chunk extensions and trailers between two bytes of the body."""


class Body:
    """The bytes of one request, counted in the budget until `release`."""

    __slots__ = (
        *("_budget", "_chunks", "_content", "_fault", "_framing_bytes", "_left", "_limit_bytes", "_waiter"),
        *("complete", "held_bytes"),
    )

    def __init__(self, length: int, chunks: HeadParser | None, limit_bytes: int, budget: Budget) -> None:
        """`length`: its bytes; negative: it comes in chunks, for the parser `chunks`."""
        self._left = length
        self.complete = length == 0
        """All of it has arrived."""
        self._chunks = chunks if length < 0 else None
        self._limit_bytes = limit_bytes
        self._budget = budget
        self._content: bytes | bytearray = b""
        self.held_bytes = self._framing_bytes = 0
        self._fault: Fault | None = None
        self._waiter: asyncio.Future[None] | None = None
        if length > limit_bytes:
            self._fault = _too_long(limit_bytes)

    @property
    def failed(self) -> bool:
        """It was refused; further bytes are dropped."""
        return self._fault is not None

    @property
    def surplus(self) -> bool:
        """Bytes followed that cannot be separated from it, so the connection cannot be used further."""
        return self._chunks is not None and self._chunks.surplus

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the connection; return those that belong to the next request."""
        if self._fault is not None:
            return b""
        rest = b""
        try:
            if self._chunks is not None:
                self._decode(self._chunks, data)
            else:
                left = self._left - len(data)
                if left < 0:
                    data, rest, left = data[: self._left], data[self._left :], 0
                self._hold(data)
                self._left, self.complete = left, left == 0
        except Fault as fault:
            self.fail(fault)
            return b""
        if self.complete and self._waiter is not None:
            self._wake()
        return rest

    def fail(self, fault: Fault) -> None:
        """Refuse it; `read` raises the fault."""
        self._fault = fault
        self._content = b""
        self._wake()

    async def read(self) -> bytes:
        """Wait for all of it. Raises Fault."""
        while not self.complete and self._fault is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.take()

    def take(self) -> bytes:
        """All of it, which has arrived, as the caller's own. Raises Fault if it was refused."""
        if self._fault is not None:
            raise self._fault
        content, self._content = self._content, b""
        return bytes(content)

    def release(self) -> None:
        """Free the bytes."""
        if self.held_bytes:
            self._budget.give_back(self.held_bytes)
            self.held_bytes = 0
        self._content = b""

    def _decode(self, chunks: HeadParser, data: bytes) -> None:
        chunks.decode(data)
        self._framing_bytes = 0 if chunks.decoded else self._framing_bytes + len(data)
        if self._framing_bytes > FRAMING_BYTES:
            raise Fault(400, "the body's chunks are more framing than body")
        self._hold(b"".join(chunks.decoded))
        self.complete = chunks.complete

    def _hold(self, piece: bytes) -> None:
        size_bytes = len(piece)
        if self.held_bytes + size_bytes > self._limit_bytes:
            raise _too_long(self._limit_bytes)
        if not self._budget.take(size_bytes):
            raise Fault(429, "waiting requests use all memory for request bodies; retry later")
        self.held_bytes += size_bytes
        if not self._content:
            self._content = piece
        else:
            if isinstance(self._content, bytes):
                self._content = bytearray(self._content)
            self._content += piece

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _too_long(limit_bytes: int) -> Fault:
    return Fault(413, f"the body is longer than {limit_bytes} bytes")
