"""Removes from a stream the usage that the sidecar requested and the client did not.

Requesting usage changes two things in vLLM's streams (0.32.0, chat and completions): an event without choices is added
at the end, and `system_fingerprint` moves there from the event with the finish reason. Both are undone here; all other
bytes are unchanged.
"""

from __future__ import annotations

import json
import re

from uellm.sidecar.wire.events import USAGE, data_of, has_usage

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""A longer event is passed on piece by piece, and so is the rest of the stream."""

_FINGERPRINT_NAME = b'"system_fingerprint":'
_FINGERPRINT = re.compile(_FINGERPRINT_NAME + rb'"[^"\\]*"')
"""Its plain form. A quotation mark inside a JSON string is escaped, so this is never a part of one."""

_NO_CHOICES = b'"choices":[]'
FINISHED = b'"finish_reason":"'
"""In every event that ends a choice."""


class UsageStrip:
    """Takes the engine's pieces and returns those for the client. For streams with one choice."""

    __slots__ = ("_last", "_open", "_rest", "holding")

    def __init__(self) -> None:
        self._rest = b""
        """The begin of an incomplete event."""
        self._last = b""
        """The event with the finish reason, held until the next one shows whether it needs the fingerprint."""
        self._open = False
        """Everything is passed on from now on."""
        self.holding = False
        """Whether received bytes are held back."""

    def feed(self, piece: bytes) -> bytes:
        """The bytes that can be sent now."""
        # Whole events without finish or usage while nothing is held: nearly every piece.
        if (
            not self.holding
            and piece.endswith(b"\n\n")
            and piece.find(FINISHED) < 0  # `in` takes half as long again
            and (piece.find(USAGE) < 0 or not has_usage(piece))
        ):
            return piece
        if self._open:
            return piece
        sent = self._events_of(piece)
        self.holding = bool(self._last or self._rest)
        return sent

    def _events_of(self, piece: bytes) -> bytes:
        *events, self._rest = (self._rest + piece).split(b"\n\n")
        sent: list[bytes] = []
        for body in events:
            event = body + b"\n\n"
            sent.append(event if self._open else self._event(event))
        if self._open or len(self._rest) > MAX_EVENT_BYTES:
            sent.append(self.finish())
        return b"".join(sent)

    def finish(self) -> bytes:
        """The bytes held back, at the end of the stream or when it breaks."""
        self._open, self.holding = True, False
        held = self._last + self._rest
        self._last = self._rest = b""
        return held

    def _event(self, event: bytes) -> bytes:
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
            # The engine always includes usage (--enable-force-include-usage), so the client expects it.
            self._open = '"usage":null' not in event.decode("utf-8", "replace")
            return last + event
        self._open = True
        return _stamped(last, event)


def _stamped(last: bytes, usage_event: bytes) -> bytes:
    """The event with the finish reason, with its original fingerprint."""
    at = last.rfind(b"}")
    if at < 0 or b'"system_fingerprint"' in last:
        return last
    name_at = usage_event.find(_FINGERPRINT_NAME)  # much faster than a pattern's search
    # An escape could hide the name.
    if name_at < 0 and b"system_fingerprint" not in usage_event and b"\\" not in usage_event:
        return last
    if name_at >= 0 and (plain := _FINGERPRINT.search(usage_event, name_at)) is not None:
        return b"%b,%b%b" % (last[:at], plain[0], last[at:])
    try:
        fingerprint = json.loads((data_of(usage_event) or b"").decode()).get("system_fingerprint")
    except (ValueError, AttributeError, RecursionError):
        return last
    if fingerprint is None:
        return last
    return last[:at] + b',"system_fingerprint":' + json.dumps(fingerprint, ensure_ascii=False).encode() + last[at:]
