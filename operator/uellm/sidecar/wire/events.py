"""Server-sent events, as cheaply as they can be counted: a search for bytes, no parsing, whatever the pieces' borders.

A raw newline or quotation mark cannot stand inside a JSON string, so `\\ndata: {` begins an event and `"usage":{`
is a key wherever either is found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.sidecar.wire.routes import RouteKind

_EVENT = b"\ndata: {"
_MARKS = {
    RouteKind.RESPONSES: b".delta\ndata: {",
    RouteKind.MESSAGES: b"content_block_delta\ndata: {",
}
"""What is counted where not every event brings a token."""

TAIL_BYTES = 16 * 1024
"""As much of an answer's end as has its usage in it."""

USAGE = b'"usage":'
"""In every event that speaks of usage."""


@dataclass(frozen=True)
class Usage:
    """Tokens as the engine counted them."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0


class TokenCounter:
    """Counts the tokens of an answer as it goes by.

    A stream is counted by its events, one token each, which is right to a few where the engine puts several tokens
    into one; the usage at its end, where there is one, sets it right. A chat begins with an event a choice that
    only names the role.
    """

    __slots__ = ("_carry", "_keep", "_tail", "_tail_bytes", "events", "mark")

    def __init__(self, kind: RouteKind, sequences: int = 1) -> None:
        self.mark = _MARKS.get(kind, _EVENT)
        """What is counted."""
        self._keep = 1 - len(self.mark)
        self.events = -sequences if kind is RouteKind.CHAT else 0
        """Who counts by `mark` elsewhere, in whole events between two pieces, adds them here."""
        self._carry = b"\n"
        self._tail: list[bytes] = []
        """The last pieces, from the first one on that may speak of usage."""
        self._tail_bytes = 0

    def feed(self, piece: bytes) -> int:
        """Take the next bytes of the answer's body. Returns how many events of tokens they completed."""
        joined = self._carry + piece
        found = joined.count(self.mark)
        self._carry = joined[self._keep :]
        if self._tail or USAGE in joined:
            self._remember(piece if self._tail else joined)
        self.events += found
        return found

    @property
    def tokens(self) -> int:
        """Tokens so far, by events."""
        return max(self.events, 0)

    def _remember(self, piece: bytes) -> None:
        self._tail.append(piece)
        self._tail_bytes += len(piece)
        if self._tail_bytes > 2 * TAIL_BYTES:
            self._tail = [b"".join(self._tail)[-TAIL_BYTES:]]
            self._tail_bytes = TAIL_BYTES

    def usage(self) -> Usage | None:
        """What the engine says at the end; None where it does not."""
        tail = b"".join(self._tail)[-TAIL_BYTES:]
        at = tail.rfind(USAGE)
        while at >= 0:
            if (usage := _usage(tail[at + len(USAGE) :])) is not None:
                return usage
            at = tail.rfind(USAGE, 0, at)
        return None


def _usage(text: bytes) -> Usage | None:
    try:
        document, _ = json.JSONDecoder().raw_decode(text.decode("utf-8", "replace").lstrip())
    except ValueError:
        return None
    return usage_of(document)


def usage_of(document: Any) -> Usage | None:
    """Usage in OpenAI's names, in those of its Responses API, or in Anthropic's; None where it is none of them."""
    if not isinstance(document, Mapping):
        return None
    prompt = document.get("prompt_tokens", document.get("input_tokens"))
    if not isinstance(prompt, int):
        return None
    details = document.get("prompt_tokens_details") or document.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    output = document.get("completion_tokens", document.get("output_tokens"))
    return Usage(prompt, output if isinstance(output, int) else 0, cached if isinstance(cached, int) else 0)


class Splitter:
    """Cuts a stream into whole events, each with the blank line that ends it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that this piece completes."""
        text = self._rest + piece
        *events, self._rest = text.split(b"\n\n")
        return [event + b"\n\n" for event in events]

    @property
    def rest(self) -> bytes:
        """The beginning of an event that is not whole."""
        return self._rest


def data_of(event: bytes) -> bytes | None:
    """The data of a whole event; None where it has none, as a comment that keeps a connection alive."""
    if event.startswith(b"data:"):
        return event[5:].strip()
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
