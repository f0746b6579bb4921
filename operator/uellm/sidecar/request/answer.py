"""What happens to an answer on its way: its tokens are counted, and its bytes changed where the client did not ask for
what we did.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from uellm.http import Upstream
from uellm.sidecar.request.fast_path import FastPath
from uellm.sidecar.request.relay import streams_events
from uellm.sidecar.telemetry.faults import FaultGuard
from uellm.sidecar.wire.aggregate import Aggregator
from uellm.sidecar.wire.call import Call, Mode
from uellm.sidecar.wire.events import TokenCounter, Usage
from uellm.sidecar.wire.failure import StreamErrorScanner
from uellm.sidecar.wire.shape import AnswerShapes
from uellm.sidecar.wire.strip import UsageStrip

_LESSON_BYTES = 256 * 1024

OnTokens = Callable[[int], None]
"""Told of the tokens so far, whenever there are more."""


class AnswerTap:
    """Sees every piece of one answer."""

    def __init__(
        self, call: Call, upstream: Upstream, shapes: AnswerShapes, on_tokens: OnTokens, spared: FaultGuard
    ) -> None:
        """`spared`: keeps what fails while tokens are counted away from the answer."""
        self._call = call
        self._shapes = shapes
        self._on_tokens = on_tokens
        self._spared = spared
        self.counter = TokenCounter(call.kind, call.sequences)
        self.failure = StreamErrorScanner(call.kind)
        self.fast_path: FastPath | None = None
        """The short way, for most events of a stream that goes out as it comes in."""
        self._begun = False
        good = upstream.status == 200
        streams = streams_events(upstream)
        self.whole: Aggregator | None = None
        """Puts the answer together; until it is done the client gets nothing."""
        self._strip: UsageStrip | None = None
        self._lesson: list[bytes] | None = None
        if streams and good and call.mode is Mode.STREAM_STRIP_USAGE:
            self._strip = UsageStrip()
        elif streams and good and call.shape is not None:
            self.whole = Aggregator(call.kind, call.shape)
        elif good and not streams and call.teaches:
            self._lesson = []

    def piece(self, piece: bytes) -> bytes:
        """Take a piece; what the client is to get now."""
        if self._strip is not None:
            return self._strip.feed(piece)
        if self.whole is not None:
            self.whole.feed(piece)
            return b""
        if self._lesson is not None:
            self._lesson.append(piece)
        return piece

    def count(self, piece: bytes) -> None:
        """Take a piece into account. Once that failed, no more of the answer is counted."""
        if self._spared.failed:
            return
        with self._spared:
            if not self.failure.feed(piece) and self.counter.feed(piece):
                self._begun = True
                self._on_tokens(self.counter.tokens or 1)

    def chunk_sink(self) -> Callable[[bytes], bool] | None:
        """The short way where it can be taken now: a token has come, and nothing is held back."""
        if (
            self.fast_path is None
            or not self._begun
            or self._spared.failed
            or (self._strip is not None and self._strip.holding)
        ):
            return None
        return self.fast_path.take

    def held_back(self) -> bytes:
        """What was held back, once no more will come."""
        return b"" if self._strip is None else self._strip.finish()

    def learn(self) -> None:
        """The answer was complete: what it shows of the engine's answers."""
        if self._lesson is None or sum(map(len, self._lesson)) > _LESSON_BYTES:
            return
        try:
            document = json.loads(b"".join(self._lesson))
        except (ValueError, RecursionError):
            return
        self._shapes.learn(self._call.kind, document)

    @property
    def tokens(self) -> int:
        """Tokens counted by events."""
        return self.counter.tokens

    def usage(self) -> Usage | None:
        """Tokens as the engine counted them; None where it does not say."""
        return self.counter.usage()
