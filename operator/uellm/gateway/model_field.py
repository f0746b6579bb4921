"""Which model a request's body names, and where in the body. Pure.

Only the name is looked for. The body is not parsed as a whole, since the engine does that, and it is passed on byte for
byte. A body that names two models is refused, because two parsers could take different ones.

A body may have hundreds of megabytes, and streams go on beside it: the search is a generator that stops after each
piece of the body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from dataclasses import dataclass
from email.message import Message

from uellm.proxying.outcome import Refusal, RequestOutcome

MOST_STEPS = 100_000
"""Strings and brackets that are looked at one by one: some tenths of a second on a slow core, in pieces."""
PIECE_BYTES = 64 * 1024
"""Of the body, looked at in one go: a millisecond or two on a slow core."""
PIECE_STEPS = 1000
"""The same in strings and brackets."""

_LEVELS = 4
"""Brackets within brackets that are skipped at once."""
# Only single characters are repeated possessively: groups that are go wrong before Python 3.11.5.
_STRING = rb'"(?:[^"\\]++|\\.)*"'
_OTHER = rb'[^"{}\[\]]++'


def _run(strings: bytes, depth: int) -> bytes:
    """A pattern: strings, brackets with all that is between them up to that depth, and what is neither."""
    inner = rb"|[{\[]" + _run(_STRING, depth - 1) + rb"[}\]]" if depth else b""
    return rb"(?:" + _OTHER + b"|" + strings + inner + rb")*"


_TOKEN = re.compile(rb'[{}\[\]"]')
"""A bracket, or the beginning of a string."""
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*', re.DOTALL)
_INNER = re.compile(_run(_STRING, _LEVELS), re.DOTALL)
"""What may be skipped at once inside of a value. Brackets that are nested deeper are taken one by one."""
_OUTER = re.compile(_run(rb'(?!"model")"[^"\\]*+"', _LEVELS), re.DOTALL)
"""What may be skipped at once in the outermost object: no string that may spell `model`."""
_AFTER_KEY = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_OPENING = re.compile(rb"[ \t\r\n]*+{")
_LONGEST_KEY = 64
"""The name `model` may be spelled with escapes, which make it longer."""
_BOM = b"\xef\xbb\xbf"
_PART_NAME = re.compile(
    rb"\r\ncontent-disposition:[^;\r\n]*+"
    rb'(?:;[ \t]*+(?!name=)[^=;\r\n]++(?:=(?:"(?:[^"\\\r\n]|\\.)*"|[^";\r\n]*+)[ \t]*+)?)*'
    rb';[ \t]*+name=(?:"([^"\r\n]*)"|([^;\s]*))',
    re.IGNORECASE,
)
"""The parameter `name` of a part; other parameters, such as `filename`, may hold the same text."""
_HEADERS_END = b"\r\n\r\n"
_PART_HEADERS_BYTES = 64 * 1024
"""A form counts as not complete where the headers of a part are longer."""


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
        whole = memoryview(body)  # of which a slice is no copy
        return b"".join((whole[: self.start], spelled, whole[self.end :]))


Search = Generator[None, None, ModelField]
Fields = Generator[None, None, list[ModelField]]


def model_field(content_type: str | None, body: bytes) -> Search:
    """Look for the field `model` of a JSON object or of a form, piece by piece.

    Raises Refusal: there is none, there are two, it is no text.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    found = yield from _in_form(content_type or "", body) if kind == "multipart/form-data" else _in_json(body)
    if len(found) > 1:
        raise _refusal("the body has more than one field `model`; send it once")
    if not found:
        raise _refusal("the body has no field `model`; name one of the models that GET /v1/models lists")
    return found[0]


def _in_json(body: bytes) -> Fields:
    # Python's parser, and so vLLM, takes UTF-8 with a byte order mark. UTF-16 reads otherwise there than here.
    at = len(_BOM) if body.startswith(_BOM) else 0
    if b"\0" in body[:4] or (opening := _OPENING.match(body, at)) is None:
        raise _refusal("the body is not a JSON object in UTF-8")
    found: list[ModelField] = []
    depth, at = 1, opening.end()
    limit = at + PIECE_BYTES
    for step in range(1, MOST_STEPS + 1):
        at = _behind_run(_OUTER if depth == 1 else _INNER, body, at, limit)
        if at >= limit or not step % PIECE_STEPS:
            yield
            limit = at + PIECE_BYTES
            if at < len(body) and body[at] not in b'{}[]"':
                continue
        token = _TOKEN.match(body, at)
        if token is None:
            return found
        if token[0] == b'"':
            start, at = at, (yield from _behind_string(body, at))
            if not at:
                raise _refusal("the body is not JSON: a string has no end")
            if depth == 1 and (colon := _AFTER_KEY.match(body, at)) is not None and _is_model(body, start, at):
                found.append((yield from _json_value(body, colon.end())))
            continue
        at = token.end()
        depth += 1 if token[0] in b"{[" else -1
        if not depth:
            return found
    raise _refusal("the body has too many values that are nested deeply")


def _behind_run(run: re.Pattern[bytes], body: bytes, at: int, limit: int) -> int:
    """Behind what may be skipped at once. What goes on beyond the limit is not part of it."""
    found = run.match(body, at, limit)
    return at if found is None else found.end()


def _behind_string(body: bytes, at: int) -> Generator[None, None, int]:
    """Behind the string that begins there; 0: it has no end. Most long ones are data in base64, without any escape."""
    at += 1
    while at < len(body):
        limit = at + PIECE_BYTES
        quote = body.find(b'"', at, limit)
        if body.find(b"\\", at, limit if quote < 0 else quote) < 0:
            end = quote if quote >= 0 else min(limit, len(body))
        else:
            end = _behind_run(_IN_STRING, body, at, limit + 1)  # one more, which an escape may need
            if end == at:
                return 0
        if body.startswith(b'"', end):
            return end + 1
        at = end
        yield
    return 0


def _is_model(body: bytes, start: int, end: int) -> bool:
    key = body[start : min(end, start + _LONGEST_KEY + 1)]
    return key == b'"model"' or (b"\\" in key and len(key) <= _LONGEST_KEY and _text(key) == "model")


def _json_value(body: bytes, start: int) -> Search:
    end = (yield from _behind_string(body, start)) if body.startswith(b'"', start) else 0
    name = _text(body[start:end]) if end else None
    if name is None:
        raise _refusal("the field `model` is not a text")
    return ModelField(name, start, end, in_json=True)


def _text(token: bytes) -> str | None:
    try:
        found = json.loads(token)
    except ValueError:
        return None
    return found if isinstance(found, str) else None


def _in_form(content_type: str, body: bytes) -> Fields:
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise _refusal("the form has no boundary")
    delimiter = b"--" + boundary.encode("utf-8", "surrogateescape")
    ends = re.compile(rb"\r\n" + re.escape(delimiter) + rb"(?=\r\n|--)")
    found: list[ModelField] = []
    at = 0 if body.startswith(delimiter) else (yield from _start_of(ends, body, 0)) + 2
    while body.startswith(b"\r\n", at + len(delimiter)):
        head_end = body.find(_HEADERS_END, at, at + _PART_HEADERS_BYTES)
        if head_end < 0:
            raise _refusal("the form is not complete")
        end = yield from _start_of(ends, body, head_end + 2)
        name = _PART_NAME.search(body, at, head_end)
        if name is not None and (name[1] or name[2]) == b"model":
            start = min(head_end + len(_HEADERS_END), end)
            found.append(ModelField(body[start:end].decode("utf-8", "replace"), start, end, in_json=False))
        at = end + 2
    return found


def _start_of(what: re.Pattern[bytes], body: bytes, at: int) -> Generator[None, None, int]:
    longest = len(what.pattern)  # more than what it matches
    while at < len(body):
        found = what.search(body, at, at + PIECE_BYTES + longest)
        if found is not None:
            return found.start()
        at += PIECE_BYTES
        yield
    raise _refusal("the form is not complete")


def _refusal(message: str) -> Refusal:
    return Refusal(RequestOutcome.BAD_REQUEST, message)
