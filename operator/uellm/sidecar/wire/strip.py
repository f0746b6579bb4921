"""A stream that we asked for the usage of and the client did not: without it again, as the engine would have sent it.

Asking for usage changes two things in vLLM's streams (0.32.0, chat and completions): an event without choices follows
the last one, and `system_fingerprint` moves from the event with the finish reason into it. Both are undone here; all
other bytes stay as they are.
"""

from __future__ import annotations

import json

from uellm.sidecar.wire.events import USAGE, Splitter, data_of

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""An event longer than this is passed on piece by piece, and the rest of the stream with it."""

_NO_CHOICES = b'"choices":[]'
FINISHED = b'"finish_reason":"'
"""In every event that ends a choice."""


class UsageStrip:
    """Takes pieces as they come from the engine and gives those that go to the client. For one choice."""

    def __init__(self) -> None:
        self._events = Splitter()
        self._last = b""
        """The event with the finish reason, until the next one tells whether the fingerprint has to go into it."""
        self._open = False
        """Nothing is looked for any more."""
        self.holding = False
        """Whether something that came was not given yet."""

    def feed(self, piece: bytes) -> bytes:
        """What can be sent now."""
        # Whole events with nothing of interest, and nothing held: nearly every piece.
        if not self.holding and piece.endswith(b"\n\n") and FINISHED not in piece and USAGE not in piece:
            return piece
        if self._open:
            return piece
        sent = self._events_of(piece)
        self.holding = bool(self._last or self._events.rest)
        return sent

    def _events_of(self, piece: bytes) -> bytes:
        sent = b"".join(self._event(event) for event in self._events.feed(piece))
        return sent + self.finish() if self._open or len(self._events.rest) > MAX_EVENT_BYTES else sent

    def finish(self) -> bytes:
        """What was held back, at the stream's end or when it broke off."""
        self._open, self.holding = True, False
        held = self._last + self._events.rest
        self._last, self._events = b"", Splitter()
        return held

    def _event(self, event: bytes) -> bytes:
        if self._open:
            return event
        if USAGE in event:
            return self._with_usage(event)
        if self._last and event.startswith(b":"):
            self._last += event  # a comment that keeps the connection alive
            return b""
        last, self._last = self._last, b""
        if FINISHED in event:
            self._last = event
            return last
        return last + event

    def _with_usage(self, event: bytes) -> bytes:
        last, self._last = self._last, b""
        if _NO_CHOICES not in event:
            # It counts along although nobody asked (--enable-force-include-usage): the client would see all of this.
            self._open = '"usage":null' not in event.decode("utf-8", "replace")
            return last + event
        self._open = True
        return _stamped(last, event)


def _stamped(last: bytes, usage_event: bytes) -> bytes:
    """The event with the finish reason, with the fingerprint that it would have had."""
    try:
        fingerprint = json.loads(data_of(usage_event) or b"").get("system_fingerprint")
    except (ValueError, AttributeError, RecursionError):
        return last
    at = last.rfind(b"}")
    if fingerprint is None or at < 0 or b'"system_fingerprint"' in last:
        return last
    return last[:at] + b',"system_fingerprint":' + json.dumps(fingerprint, ensure_ascii=False).encode() + last[at:]
