"""Counts server-sent events by searching for bytes, without parsing and for any division into pieces.

A JSON string cannot contain a raw newline or quotation mark, so `\\ndata: {` always begins an event and `"usage":{`
is always a key.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from uellm.vllm_routes import RouteKind

_CHAT = RouteKind.CHAT
_EVENT = b"\ndata: {"
_MARKS = {
    RouteKind.RESPONSES: b".delta\ndata: {",
    RouteKind.MESSAGES: b"content_block_delta\ndata: {",
}
"""What is counted if not every event carries a token."""

_DECODER = json.JSONDecoder()

TAIL_BYTES = 16 * 1024
"""Length of an answer's end that contains its usage."""

USAGE = b'"usage":'
"""Contained in every event with usage."""


_COUNT = rb"(0|[1-9]\d{0,8})"
_PLAIN_USAGE = re.compile(
    rb'\{"prompt_tokens":%b,"total_tokens":%b,"completion_tokens":%b(?:,"\w+_tokens_details":null)*\}'
    % (_COUNT, _COUNT, _COUNT)
)
"""Usage as vLLM mostly writes it for a chat or a completion. Other forms are parsed as JSON."""

NO_USAGE = b'"usage":null'
"""Contained in every event of a streamed completion that has no usage."""


def has_usage(data: bytes) -> bool:
    """Whether bytes of an answer contain usage that is not null, or its name without a value yet."""
    return USAGE in data and data.count(USAGE) > data.count(NO_USAGE)


class Usage(NamedTuple):
    """Tokens as the engine counted them."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0


class TokenCounter:
    """Counts the tokens of an answer while it is relayed.

    A stream is counted by its events, one token each; an engine that puts several tokens into one event makes the count
    too low. The usage at the end, if there is one, corrects it, and the scheduler learns from it what an event has. A
    chat begins with one event per choice that only names the role.
    """

    __slots__ = ("_carry", "_keep", "_tail", "_tail_bytes", "events", "mark")

    def __init__(self, kind: RouteKind, sequences: int = 1) -> None:
        self.mark = _MARKS.get(kind, _EVENT)
        """What is counted."""
        self._keep = 1 - len(self.mark)
        self.events = -sequences if kind is _CHAT else 0
        """Code that counts `mark` in whole events elsewhere adds them here."""
        self._carry = b"\n"
        self._tail: list[bytes] = []
        """The last pieces, from the first that may contain usage."""
        self._tail_bytes = 0

    def feed(self, piece: bytes) -> int:
        """Take the next bytes of the answer's body. Returns how many events of tokens they completed."""
        joined = self._carry + piece
        found = joined.count(self.mark)
        self._carry = joined[self._keep :]
        if self._tail or (joined.find(USAGE) >= 0 and joined.count(USAGE) > joined.count(NO_USAGE)):
            self._remember(piece if self._tail else joined)
        self.events += found
        return found

    def take_usage(self, events: bytes) -> None:
        """Take whole events with usage that are counted elsewhere. Usage in earlier ones does not matter any more."""
        self._tail, self._tail_bytes = [events], len(events)

    @property
    def tokens(self) -> int:
        """Tokens so far, by events."""
        return self.events if self.events > 0 else 0

    def _remember(self, piece: bytes) -> None:
        self._tail.append(piece)
        self._tail_bytes += len(piece)
        if self._tail_bytes > 2 * TAIL_BYTES:
            self._tail = [b"".join(self._tail)[-TAIL_BYTES:]]
            self._tail_bytes = TAIL_BYTES

    def usage(self) -> Usage | None:
        """The usage at the end of the answer; None if there is none."""
        if not self._tail:
            return None
        tail = (self._tail[0] if len(self._tail) == 1 else b"".join(self._tail))[-TAIL_BYTES:]
        at = tail.rfind(USAGE)
        if at >= 0 and (plain := _PLAIN_USAGE.match(tail, at + len(USAGE))):
            return Usage(int(plain[1]), int(plain[3]))
        while at >= 0:
            if (usage := _usage(tail[at + len(USAGE) :])) is not None:
                return usage
            at = tail.rfind(USAGE, 0, at)
        return None


def _usage(text: bytes) -> Usage | None:
    try:
        document, _ = _DECODER.raw_decode(text.decode("utf-8", "replace").lstrip())
    except ValueError:
        return None
    return usage_of(document)


def usage_of(document: Any) -> Usage | None:
    """Usage with the names of OpenAI, of its Responses API, or of Anthropic; None for anything else."""
    if not isinstance(document, dict):
        return None
    prompt = document.get("prompt_tokens", document.get("input_tokens"))
    if not isinstance(prompt, int):
        return None
    details = document.get("prompt_tokens_details") or document.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    output = document.get("completion_tokens", document.get("output_tokens"))
    return Usage(prompt, output if isinstance(output, int) else 0, cached if isinstance(cached, int) else 0)


def data_of(event: bytes) -> bytes | None:
    """The data of a complete event; None if it has none, such as a keep-alive comment."""
    if event.startswith(b"data:"):
        return event[5:].strip()
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
