"""A non-streaming answer, assembled from the engine's stream.

Only for plain requests (`read` decides which), and in the shape of the engine's own answers: equal to them, byte for
byte if the engine writes JSON as Starlette does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from uellm.http import BLANK
from uellm.sidecar.wire.events import data_of
from uellm.sidecar.wire.shape import REASONING, AnswerShape, json_of
from uellm.vllm_routes import RouteKind

_LOGPROB: Mapping[str, Any] = {"token": "", "logprob": -9999.0, "bytes": None, "top_logprobs": []}
"""vLLM's defaults, which its streams omit and its non-streaming answers contain."""

_DONE = b"[DONE]"

UNREAD_BYTES = 16 * 1024
"""Bytes of events that wait to be read: reading many at once takes a third of the time."""

_DECODER = json.JSONDecoder()


class _Choice:
    """One choice, assembled so far."""

    __slots__ = ("finish_reason", "has_text", "logprobs", "reasoning", "role", "stop_reason", "text")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.role = "assistant"
        self.has_text = False
        self.finish_reason: Any = None
        self.stop_reason: Any = None
        self.logprobs: list[Mapping[str, Any]] = []
        self.reasoning: dict[str, list[str]] = {}

    def add(self, piece: Mapping[str, Any]) -> None:
        """Add its next part."""
        delta = piece.get("delta", piece)
        if "content" in delta:
            text, others = delta["content"], len(delta) > 1
        else:
            text, others = delta.get("text"), True
        if text is not None:
            self.has_text = True
            self.text.append(text)
        if others:  # nearly every delta is only text
            for name in REASONING:
                if delta.get(name):
                    self.reasoning.setdefault(name, []).append(delta[name])
            self.role = delta.get("role") or self.role
        if piece.get("logprobs") is not None:
            self.logprobs.append(piece["logprobs"])
        if piece.get("finish_reason") is not None:
            self.finish_reason = piece["finish_reason"]
            self.stop_reason = piece.get("stop_reason")


class Aggregator:
    """Takes the pieces of a stream and gives the answer at its end. Raises ValueError for an unexpected stream."""

    def __init__(self, kind: RouteKind, shape: AnswerShape) -> None:
        self._kind = kind
        self._shape = shape
        self._rest = b""
        """The begin of an incomplete event."""
        self._head: Mapping[str, Any] = {}
        self._end: Mapping[str, Any] = {}
        self._error: Mapping[str, Any] | None = None
        self._choices: dict[int, _Choice] = {}
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._done = False
        """`[DONE]` was received."""

    def feed(self, piece: bytes) -> None:
        """Take the next bytes."""
        data = self._rest + piece
        rest = self._rest = data.split(BLANK)[-1]
        if len(rest) < len(data):
            self._take_later(data[: len(data) - len(rest)])

    def take_chunk(self, chunk: bytes) -> None:
        """Take an HTTP chunk of whole events, framing included, when all bytes before it were whole events."""
        self._take_later(chunk[chunk.index(b"\n") + 1 : -2])

    def _take_later(self, events: bytes) -> None:
        """Take whole events, each with the blank line at its end."""
        self._unread.append(events)
        self._unread_bytes += len(events)
        if self._unread_bytes > UNREAD_BYTES:
            self._read_events()

    def _read_events(self) -> None:
        text, self._unread, self._unread_bytes = b"".join(self._unread), [], 0
        found: list[bytes] = []
        for event in text.split(BLANK)[:-1]:
            data = event[5:].strip() if event.startswith(b"data:") else data_of(event)
            if data == _DONE:
                self._done = True
            elif data is not None:
                found.append(data)
        if not found:
            return
        array = (b"[%b]" % b",".join(found)).decode()
        documents, end = _DECODER.raw_decode(array)
        if end < len(array):
            raise ValueError("an event is not one object")
        for document in documents:
            self._take(document)

    def answer(self) -> tuple[int, bytes]:
        """HTTP status and body. Raises ValueError if the stream was incomplete."""
        self._read_events()
        if self._error is not None:
            # The engine failed after the stream began. Without a stream it would have answered with this status.
            status = self._error["error"].get("code")
            return status if isinstance(status, int) and 400 <= status <= 599 else 500, json_of(self._error).encode()
        if not (self._done and self._choices and self._end):
            raise ValueError("the stream ended before its usage")
        return 200, self._document().encode()

    @property
    def reasons(self) -> bool:
        """Reasoning was separated from the answer. The engine's own answers may separate it elsewhere."""
        return any(choice.reasoning for choice in self._choices.values())

    def _take(self, document: Any) -> None:
        if not isinstance(document, dict):
            raise ValueError("an event is not an object")
        if isinstance(document.get("error"), dict):
            self._error = self._error or document
            return
        self._head = self._head or document
        for choice in document.get("choices", ()):
            index = choice["index"]
            if (known := self._choices.get(index)) is None:
                known = self._choices[index] = _Choice()
            known.add(choice)
        if document.get("usage") is not None:
            self._end = document

    def _document(self) -> str:
        shape, head, end = self._shape, self._head, self._end
        fingerprint = end if "system_fingerprint" in end else shape.top
        fields = {
            "id": head.get("id"),
            "created": head.get("created"),
            "model": head.get("model"),
            "metrics": _filled(shape.top.get("metrics"), end.get("metrics")),
            "system_fingerprint": fingerprint.get("system_fingerprint"),
        }
        return shape.top_format % {
            **_texts(fields, shape.top),
            "choices": f"[{','.join([self._choice(index) for index in sorted(self._choices)])}]",
            "usage": self._usage(),
        }

    def _usage(self) -> str:
        pattern, usage = self._shape.top["usage"], self._end["usage"]
        if not isinstance(usage, dict) or not usage.keys() <= pattern.keys():
            return json_of(_filled(pattern, usage))
        fields = [
            before + json_of(_filled(pattern[name], usage.get(name))) for name, before in self._shape.usage_fields
        ]
        return f"{{{','.join(fields)}}}"

    def _choice(self, index: int) -> str:
        choice = self._choices[index]
        text = "".join(choice.text) if choice.has_text else None
        fields = {
            "index": index,
            "text": text or "",
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason or ("stop" if self._kind is RouteKind.CHAT else None),
            "stop_reason": choice.stop_reason,
        }
        return self._shape.choice_format % {
            **_texts(fields, self._shape.choice),
            "message": self._message(choice, text) if self._kind is RouteKind.CHAT else "null",
        }

    def _message(self, choice: _Choice, text: str | None) -> str:
        shape, thoughts = self._shape, choice.reasoning
        message = {"role": json_of(choice.role), "content": json_of((text or None) if thoughts else text)}
        for name in REASONING:
            if name in shape.message:
                message[name] = json_of("".join(thoughts[name]) if name in thoughts else shape.message[name])
        return shape.message_format % message

    def _logprobs(self, pieces: list[Mapping[str, Any]]) -> dict[str, list[Any]] | None:
        if not pieces:
            return None
        if self._kind is RouteKind.CHAT:
            return {"content": [_logprob(entry) for piece in pieces for entry in piece.get("content") or ()]}
        return {name: [entry for piece in pieces for entry in piece[name]] for name in pieces[0]}


def _texts(fields: Mapping[str, Any], pattern: Mapping[str, Any]) -> dict[str, str]:
    """The JSON of those fields that the pattern has. The others may have values that cannot be written."""
    return {name: json_of(value) for name, value in fields.items() if name in pattern}


def _logprob(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**_LOGPROB, **entry}


def _filled(pattern: Any, value: Any) -> Any:
    """The value in the order of the pattern, with null for the pattern's fields that it lacks."""
    if not isinstance(pattern, dict) or not isinstance(value, dict):
        return value
    empty = dict.fromkeys(pattern)
    return {
        name: _filled(pattern.get(name), each) if isinstance(each, dict) else each
        for name, each in {**empty, **value}.items()
    }
