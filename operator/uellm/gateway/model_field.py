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

MOST_STEPS = 100_000
"""Strings and brackets that are looked at one by one. That takes some tenths of a second on a slow core,
during which no stream goes on."""

_LEVELS = 4
"""Brackets within brackets that are skipped at once."""
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_OTHER = rb'[^"{}\[\]]++'


def _run(strings: bytes, depth: int) -> bytes:
    """A pattern: strings, brackets with all that is between them up to that depth, and what is neither."""
    inner = rb"|[{\[]" + _run(_STRING, depth - 1) + rb"[}\]]" if depth else b""
    return rb"(?:" + _OTHER + b"|" + strings + inner + rb")*+"


_TOKEN = re.compile(_STRING + rb'|[{}\[\]"]', re.DOTALL)
"""A whole string, a bracket, or the beginning of a string without an end."""
_INNER = re.compile(_run(_STRING, _LEVELS), re.DOTALL)
"""What may be skipped at once inside of a value. Brackets that are nested deeper are taken one by one."""
_OUTER = re.compile(_run(rb'(?!"model")"[^"\\]*+"', _LEVELS), re.DOTALL)
"""What may be skipped at once in the outermost object: no string that may spell `model`."""
_AFTER_KEY = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_OPENING = re.compile(rb"[ \t\r\n]*+{")
_BOM = b"\xef\xbb\xbf"
_PART_NAME = re.compile(
    rb"\r\ncontent-disposition:[^;\r\n]*+"
    rb'(?:;[ \t]*+(?!name=)[^=;\r\n]++(?:=(?:"(?:[^"\\\r\n]|\\.)*+"|[^";\r\n]*+)[ \t]*+)?+)*+'
    rb';[ \t]*+name=(?:"([^"\r\n]*)"|([^;\s]*))',
    re.IGNORECASE,
)
"""The parameter `name` of a part; other parameters, such as `filename`, may hold the same text."""
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
    # Python's parser, and so vLLM, takes UTF-8 with a byte order mark. UTF-16 reads otherwise there than here.
    at = len(_BOM) if body.startswith(_BOM) else 0
    if b"\0" in body[:4] or (opening := _OPENING.match(body, at)) is None:
        raise _refusal("the body is not a JSON object in UTF-8")
    depth, at = 1, opening.end()
    for _ in range(MOST_STEPS):
        at = _behind_run(_OUTER if depth == 1 else _INNER, body, at)
        token = _TOKEN.match(body, at)
        if token is None:
            return
        at = token.end()
        if len(token[0]) > 1:
            if depth == 1 and (colon := _AFTER_KEY.match(body, at)) is not None and _is_model(token[0]):
                yield _json_value(body, colon.end())
        elif token[0] == b'"':
            raise _refusal("the body is not JSON: a string has no end")
        else:
            depth += 1 if token[0] in b"{[" else -1
            if not depth:
                return
    raise _refusal("the body has too many values that are nested deeply")


def _behind_run(run: re.Pattern[bytes], body: bytes, at: int) -> int:
    found = run.match(body, at)
    return at if found is None else found.end()


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
    ends = re.compile(rb"\r\n" + re.escape(delimiter) + rb"(?=\r\n|--)")
    at = 0 if body.startswith(delimiter) else _start_of(ends, body, 0) + 2
    while body.startswith(b"\r\n", at + len(delimiter)):
        head_end = body.find(_HEADERS_END, at)
        if head_end < 0:
            raise _refusal("the form is not complete")
        end = _start_of(ends, body, head_end + 2)
        name = _PART_NAME.search(body, at, head_end)
        if name is not None and (name[1] or name[2]) == b"model":
            start = min(head_end + len(_HEADERS_END), end)
            yield ModelField(body[start:end].decode("utf-8", "replace"), start, end, in_json=False)
        at = end + 2


def _start_of(what: re.Pattern[bytes], body: bytes, at: int) -> int:
    found = what.search(body, at)
    if found is None:
        raise _refusal("the form is not complete")
    return found.start()


def _refusal(message: str) -> Refusal:
    return Refusal(RequestOutcome.BAD_REQUEST, message)
