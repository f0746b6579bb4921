"""The shape of this engine's non-streaming answers, learned from the first one.

Fields and their order depend on vLLM's version and flags, and clients must see no difference between the engine's own
answers and those that `aggregate` assembles. Nothing is assembled before the engine has sent one itself, or if that one
has content that a stream does not carry in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from json.encoder import encode_basestring
from typing import Any

from uellm.vllm_routes import RouteKind

_TOP = frozenset(("id", "object", "created", "model", "choices", "usage", "system_fingerprint", "metrics"))
_CHOICE = frozenset(("index", "message", "text", "logprobs", "finish_reason", "stop_reason"))
_MESSAGE = frozenset(("role", "content"))
_TOP_FILLED = frozenset(("id", "created", "model", "choices", "usage", "system_fingerprint", "metrics"))
REASONING = ("reasoning", "reasoning_content")
"""Names of a message's reasoning, in older and in newer versions."""
_MESSAGE_FILLED = frozenset((*_MESSAGE, *REASONING))
_CONTENT = {RouteKind.CHAT: "message", RouteKind.COMPLETIONS: "text"}


@dataclass(frozen=True)
class AnswerShape:
    """An answer of the engine as a pattern: its keys in order, with the values of keys that streams lack."""

    top: Mapping[str, Any]
    choice: Mapping[str, Any]
    message: Mapping[str, Any]

    @cached_property
    def top_format(self) -> str:
        """The answer's JSON, to be filled with the JSON of its own fields."""
        return _format(self.top, _TOP_FILLED)

    @cached_property
    def choice_format(self) -> str:
        """A choice's JSON, to be filled with the JSON of its own fields."""
        return _format(self.choice, _CHOICE)

    @cached_property
    def message_format(self) -> str:
        """A message's JSON, to be filled with the JSON of its own fields."""
        return _format({**self.message, "role": None, "content": None}, _MESSAGE_FILLED)

    @cached_property
    def usage_fields(self) -> tuple[tuple[str, str], ...]:
        """The fields of the usage, each with the JSON before its value."""
        return tuple([(name, f"{json_of(name)}:") for name in self.top["usage"]])


_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))


def json_of(value: Any) -> str:
    """A value's JSON in the form that the engine writes. Raises ValueError."""
    if type(value) is str:
        return encode_basestring(value)
    if value is None:
        return "null"
    return str(value) if type(value) is int else _ENCODER.encode(value)


def _format(pattern: Mapping[str, Any], filled: frozenset[str]) -> str:
    """The JSON of an object for `%`, with a place for each of its fields in `filled`."""
    fields = [
        f"{json_of(name)}:".replace("%", "%%")
        + (f"%({name})s" if name in filled else json_of(value).replace("%", "%%"))
        for name, value in pattern.items()
    ]
    return "{" + ",".join(fields) + "}"


class AnswerShapes:
    """Shapes of one engine's answers; `forget` them when it is replaced."""

    def __init__(self) -> None:
        self._known: dict[RouteKind, AnswerShape | None] = {}
        self.batches = True
        """The engine puts several tokens into an event when it is asked to, as far as is known. vLLM does since July
        2026; older versions ignore the field."""

    def forget(self) -> None:
        """The engine was restarted, perhaps with other flags."""
        self._known.clear()
        self.batches = True

    def wanted(self, kind: RouteKind) -> bool:
        """Whether the shape of this kind is still unknown."""
        return kind in _CONTENT and kind not in self._known

    def get(self, kind: RouteKind) -> AnswerShape | None:
        """The pattern; None: unknown or not usable."""
        return self._known.get(kind)

    def give_up(self, kind: RouteKind) -> None:
        """Its streams are not as expected: from now on the engine's own answers are passed on."""
        self._known[kind] = None

    def learn(self, kind: RouteKind, document: Any) -> None:
        """Take the engine's own answer to a plain request. What is no such answer teaches nothing."""
        if self.wanted(kind) and isinstance(document, Mapping) and _is_answer(document, _CONTENT[kind]):
            self._known[kind] = _shape(document)


def _is_answer(document: Mapping[str, Any], content: str) -> bool:
    choices = document.get("choices")
    return (
        isinstance(choices, list)
        and bool(choices)
        and isinstance(choices[0], Mapping)
        and content in choices[0]
        and isinstance(document.get("usage"), Mapping)
        and isinstance(document.get("object"), str)
    )


def _shape(document: Mapping[str, Any]) -> AnswerShape | None:
    choice = document["choices"][0]
    message = choice.get("message", {})
    # A reasoning parser splits streams and non-streaming answers differently.
    reasons = document["usage"].get("completion_tokens_details") is not None
    unknown = _tells(document, _TOP) or _tells(choice, _CHOICE) or _tells(message, _MESSAGE)
    return None if reasons or unknown else AnswerShape(dict(document), dict(choice), dict(message))


def _tells(part: Mapping[str, Any], known: frozenset[str]) -> bool:
    """Whether a field that streams may lack has a value."""
    return any(value not in (None, [], {}) for name, value in part.items() if name not in known)
