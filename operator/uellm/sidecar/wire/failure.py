"""Finds the event with which an engine reports an error inside a stream whose status was already 200. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from uellm.sidecar.wire.events import data_of
from uellm.vllm_routes import RouteKind

ERROR_EVENT = b'data: {"error":'
"""Start of an error event in OpenAI's form."""

_DATA = b"\n" + ERROR_EVENT
_EVENT = b"\nevent: error\n"
_MARKS = {
    **dict.fromkeys(RouteKind, (_DATA,)),
    RouteKind.RESPONSES: (_DATA, _EVENT, b"\nevent: response.failed\n"),
    RouteKind.MESSAGES: (_DATA, _EVENT),
}
"""Starts of error events. JSON contains no raw newline, so a match is never inside it."""
_KEPT = {kind: 1 - max(map(len, marks)) for kind, marks in _MARKS.items()}
"""Where the bytes begin that may be the start of a mark, counted from the end."""

ERROR = b'"error":'
"""Part of every error event of chats, completions and messages."""

MAX_EVENT_BYTES = 16 * 1024


class StreamErrorScanner:
    """Scans one stream for an error event, however the stream is cut into pieces."""

    __slots__ = ("_carry", "_event", "_keep", "_marks")

    def __init__(self, kind: RouteKind) -> None:
        self._marks = _MARKS[kind]
        self._keep = _KEPT[kind]
        self._carry = b"\n"
        self._event: bytes | None = None

    def feed(self, piece: bytes) -> bool:
        """Take the next bytes. Returns whether the stream has failed."""
        if self._event is not None:
            if len(self._event) < MAX_EVENT_BYTES:
                self._event += piece
            return True
        joined = self._carry + piece
        self._carry = joined[self._keep :]
        first = -1
        for mark in self._marks:
            at = joined.find(mark)
            if at >= 0 and (first < 0 or at < first):
                first = at
        if first < 0:
            return False
        self._event = joined[first + 1 :]
        return True

    @property
    def status(self) -> int:
        """HTTP status of the error; 500 if the engine did not report one, 0 if the stream did not fail."""
        if self._event is None:
            return 0
        try:
            document = json.loads(data_of(self._event.partition(b"\n\n")[0]) or b"")
        except (ValueError, RecursionError):
            return 500
        code = _code(document)
        return code if isinstance(code, int) and 400 <= code <= 599 else 500


def _code(document: Any) -> Any:
    error = document.get("error") if isinstance(document, Mapping) else None
    return error.get("code") if isinstance(error, Mapping) else None
