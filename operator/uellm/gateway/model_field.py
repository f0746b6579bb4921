"""Which model a request's body names, and where in the body. Pure.

Only the name is looked for. The body is not parsed as a whole, since the engine does that, and it is passed on byte for
byte. A body that names two models is refused, because two parsers could take different ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from uellm.proxying.outcome import Refusal, RequestOutcome

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]"]', re.DOTALL)
"""A whole string, a bracket, or the beginning of a string without an end."""
_AFTER_KEY = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_SPACE = b" \t\r\n"
_PART_NAME = re.compile(rb"content-disposition:[^\r\n]*?[; \t]name=(?:\"([^\"\r\n]*)\"|([^;\s]*))", re.IGNORECASE)
_HEADERS_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ModelField:
    """The name, and the bytes of the body from `start` to `end` that spell it."""

    name: str
    start: int
    end: int
    in_json: bool

    def replaced(self, body: bytes, name: str) -> bytes:
        """The body with another name; all other bytes are the same."""
        spelled = json.dumps(name).encode() if self.in_json else name.encode()
        return b"".join((body[: self.start], spelled, body[self.end :]))


def model_field(content_type: str | None, body: bytes) -> ModelField:
    """The field `model` of a JSON object or of a form. Raises Refusal: there is none, there are two, it is no text."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    found = list(_in_form(content_type or "", body) if kind == "multipart/form-data" else _in_json(body))
    if len(found) > 1:
        raise _refusal("the body has more than one field `model`; send it once")
    if not found:
        raise _refusal("the body has no field `model`; name one of the models that GET /v1/models lists")
    return found[0]


def _in_json(body: bytes) -> Iterator[ModelField]:
    if body.lstrip(_SPACE)[:1] != b"{":
        raise _refusal("the body is not a JSON object")
    depth = 0
    for token in _TOKEN.finditer(body):
        kind = token[0][:1]
        if kind != b'"':
            depth += 1 if kind in b"{[" else -1
            if depth <= 0:
                return
        elif len(token[0]) == 1:
            raise _refusal("the body is not JSON: a string has no end")
        elif depth == 1 and (colon := _AFTER_KEY.match(body, token.end())) is not None and _is_model(token[0]):
            yield _json_value(body, colon.end())


def _is_model(key: bytes) -> bool:
    return key == b'"model"' or (b"\\" in key and len(key) <= 64 and _text(key) == "model")


def _json_value(body: bytes, start: int) -> ModelField:
    value = _TOKEN.match(body, start)
    name = None if value is None or len(value[0]) == 1 else _text(value[0])
    if value is None or name is None:
        raise _refusal("the field `model` is not a text")
    return ModelField(name, start, value.end(), in_json=True)


def _text(token: bytes) -> str | None:
    try:
        found = json.loads(token)
    except ValueError:
        return None
    return found if isinstance(found, str) else None


def _in_form(content_type: str, body: bytes) -> Iterator[ModelField]:
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise _refusal("the form has no boundary")
    delimiter = b"--" + boundary.encode("utf-8", "surrogateescape")
    at = 0 if body.startswith(delimiter) else _behind(body, b"\r\n" + delimiter, 0) - len(delimiter)
    while body.startswith(b"\r\n", at + len(delimiter)):
        head_end = body.find(_HEADERS_END, at)
        end = body.find(b"\r\n" + delimiter, head_end + 2)
        if head_end < 0 or end < 0:
            raise _refusal("the form is not complete")
        name = _PART_NAME.search(body, at, head_end)
        if name is not None and (name[1] or name[2]) == b"model":
            start = min(head_end + len(_HEADERS_END), end)
            yield ModelField(body[start:end].decode("utf-8", "replace"), start, end, in_json=False)
        at = end + 2


def _behind(body: bytes, what: bytes, start: int) -> int:
    at = body.find(what, start)
    if at < 0:
        raise _refusal("the form is not complete")
    return at + len(what)


def _refusal(message: str) -> Refusal:
    return Refusal(RequestOutcome.BAD_REQUEST, message)
