"""The event by which an engine says inside a stream, whose status is 200 already, that it failed. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from uellm.sidecar.wire.events import data_of
from uellm.sidecar.wire.routes import RouteKind

ERROR_EVENT = b'data: {"error":'
"""How OpenAI's begins."""

_DATA = b"\n" + ERROR_EVENT
_EVENT = b"\nevent: error\n"
_MARKS = {
    RouteKind.RESPONSES: (_DATA, _EVENT, b"\nevent: response.failed\n"),
    RouteKind.MESSAGES: (_DATA, _EVENT),
}
"""How such events begin, where there are others than OpenAI's of chats. A raw newline cannot stand inside JSON."""

ERROR = b'"error":'
"""In every event of chats, completions and messages that tells an error."""

MAX_EVENT_BYTES = 16 * 1024


class StreamErrorScanner:
    """Looks for that event in one stream as it goes by, whatever the pieces' borders."""

    __slots__ = ("_carry", "_event", "_keep", "_marks")

    def __init__(self, kind: RouteKind) -> None:
        self._marks = _MARKS.get(kind, (_DATA,))
        self._keep = 1 - max(map(len, self._marks))
        self._carry = b"\n"
        self._event: bytes | None = None

    def feed(self, piece: bytes) -> bool:
        """Take the next bytes. Whether the stream has failed by now."""
        if self._event is not None:
            if len(self._event) < MAX_EVENT_BYTES:
                self._event += piece
            return True
        joined = self._carry + piece
        self._carry = joined[self._keep :]
        found = [at for mark in self._marks if (at := joined.find(mark)) >= 0]
        if found:
            self._event = joined[min(found) + 1 :]
        return bool(found)

    @property
    def status(self) -> int:
        """The HTTP status that the engine would have answered with, as far as it says; 0: it did not fail."""
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
