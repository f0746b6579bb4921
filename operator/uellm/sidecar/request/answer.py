"""Processes an answer on its way to the client: counts tokens, and removes what only the sidecar asked for."""

from __future__ import annotations

import json
from collections.abc import Callable

from uellm.http import Upstream
from uellm.proxying.faults import FaultGuard
from uellm.proxying.response_id import OpeningId
from uellm.sidecar.request.fast_path import FastPath
from uellm.sidecar.wire.aggregate import Aggregator
from uellm.sidecar.wire.call import BATCH_TOKENS, Call, Mode
from uellm.sidecar.wire.events import TokenCounter, Usage
from uellm.sidecar.wire.failure import StreamErrorScanner
from uellm.sidecar.wire.shape import AnswerShapes
from uellm.sidecar.wire.strip import UsageStrip

_STRIPS = Mode.STREAM_STRIP_USAGE
"""By a name of its own: to read an enum's member costs as much as a call."""

_MAX_EXAMPLE_BYTES = 256 * 1024

OnTokens = Callable[[int], None]
"""Called with the number of tokens so far whenever it grows."""


class AnswerTap:
    """Processes every piece of one answer."""

    __slots__ = (
        *("_batched", "_begun", "_call", "_example", "_guard", "_on_tokens", "_shapes", "_strip", "counter"),
        *("failure", "fast_path", "kept_as", "streams", "whole"),
    )

    def __init__(
        self,
        call: Call,
        upstream: Upstream,
        shapes: AnswerShapes,
        on_tokens: OnTokens,
        guard: FaultGuard,
        *,
        batched: bool = False,
    ) -> None:
        """`guard` keeps faults of the token counting away from the answer; `batched`: several tokens an event."""
        self._call = call
        self._shapes = shapes
        self._on_tokens = on_tokens
        self._guard = guard
        self._batched = batched
        self.counter = TokenCounter(call.kind, call.sequences)
        self.failure = StreamErrorScanner(call.kind)
        self.fast_path: FastPath | None = None
        """Takes most events of a stream."""
        self._begun = False
        self.kept_as = OpeningId() if call.background and upstream.status == 200 else None
        """The id by which a response in the background is asked for."""
        good = upstream.status == 200
        self.streams = streams = upstream.streams_events
        self.whole: Aggregator | None = None
        """Assembles a whole answer from a stream. The client gets nothing before it is complete."""
        self._strip: UsageStrip | None = None
        self._example: list[bytes] | None = None
        if streams and good and call.mode is _STRIPS:
            self._strip = UsageStrip()
        elif streams and good and call.shape is not None:
            self.whole = Aggregator(call.kind, call.shape)
        elif good and not streams and call.teaches:
            self._example = []

    def piece(self, piece: bytes) -> bytes:
        """Take a piece. Returns the bytes to send now."""
        if self.kept_as is not None:
            self.kept_as.feed(piece)
        if self._strip is not None:
            return self._strip.feed(piece)
        if self.whole is not None:
            self.whole.feed(piece)
            return b""
        if self._example is not None:
            self._example.append(piece)
        return piece

    def count(self, piece: bytes) -> None:
        """Count the tokens of a piece. After a fault the rest of the answer is not counted."""
        guard = self._guard
        if guard.failed:
            return
        try:
            if not self.failure.feed(piece) and self.counter.feed(piece):
                self._begun = True
                tokens = self.tokens if self._batched else self.counter.events
                self._on_tokens(tokens if tokens > 0 else 1)
        except Exception as error:
            guard.take(error)

    def chunk_sink(self) -> Callable[[bytes], bool] | None:
        """The fast path, if a token has come and nothing is held back; else None."""
        if (
            self.fast_path is None
            or not self._begun
            or self._guard.failed
            or (self._strip is not None and self._strip.holding)
        ):
            return None
        return self.fast_path.take

    def held_back(self) -> bytes:
        """The bytes that were held back, at the end of the answer."""
        return self._strip.finish() if self._strip is not None and self._strip.holding else b""

    def learn(self) -> None:
        """Learn the shape of the engine's answers from this complete one, and whether it batches tokens."""
        if self._batched and self.tokens > BATCH_TOKENS:
            self._shapes.batches &= self.counter.tokens < self.tokens
        if self._example is None or sum(map(len, self._example)) > _MAX_EXAMPLE_BYTES:
            return
        try:
            document = json.loads(b"".join(self._example))
        except (ValueError, RecursionError):
            return
        self._shapes.learn(self._call.kind, document)

    @property
    def tokens(self) -> int:
        """Tokens so far: by events, or as the engine reports them with its events."""
        if self._batched and (reported := self.counter.usage()) is not None:
            return reported.output_tokens
        return self.counter.tokens

    def usage(self) -> Usage | None:
        """Tokens as the engine counted them. None: it did not report them."""
        return self.counter.usage()
