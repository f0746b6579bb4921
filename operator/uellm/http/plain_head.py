"""Reads a request's head of the plainest form in one pass.

Nearly every head is of this form. It is narrower than what `HeadFinder` and `HeadParser` take, so no two parsers can
read it differently. They decide about every other head, and give the same result for a plain one.
"""

from __future__ import annotations

import re

from uellm.http.head import HOST, Head
from uellm.http.message import Headers, RequestLimits

_PATH = rb"A-Za-z0-9._~%!$&'()*+,;=:@/-"
_HEAD = re.compile(
    rb"(GET|POST|PUT|DELETE|PATCH|HEAD|OPTIONS) ((/[" + _PATH + rb"]*+)(?:\?([?" + _PATH + rb"]*+))?) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]++: [\x21-\x7e][\x20-\x7e]*+\r\n)++)\r\n"
)
_FIELD = re.compile(rb"([^:]++): ([^\r]++)\r\n")
"""One of the fields that `_HEAD` has found."""
_KEPT = (None, b"keep-alive", b"Keep-Alive")
"""Values of `Connection` with which a connection is kept."""
_OTHERS = frozenset((b"transfer-encoding", b"upgrade", b"expect", b"proxy-connection"))
"""Fields that change how a request is read."""
_MOST_LENGTH_DIGITS = 15


def plain_head(data: bytes, limits: RequestLimits) -> tuple[Head, int] | None:
    """The head at the start of `data`, and its length. None: it is incomplete, of another form, or over a limit."""
    found = _HEAD.match(data)
    if found is None:
        return None
    method, target, path, query, fields = found.groups()
    end = found.end()
    if end > limits.line_bytes or end > limits.headers_bytes or b" \r\n" in fields:
        return None
    raw: list[tuple[bytes, bytes]] = _FIELD.findall(fields)
    first = {name.lower(): value for name, value in raw}
    count = len(raw)
    # Fewer names than fields: some come twice.
    if len(first) != count or count > limits.headers or not _OTHERS.isdisjoint(first):
        return None
    host, length = first.get(b"host"), first.get(b"content-length", b"0")
    if host is None or HOST.fullmatch(host) is None or first.get(b"connection") not in _KEPT:
        return None
    if not length.isdigit() or len(length) > _MOST_LENGTH_DIGITS:
        return None
    text = query.decode() if query else ""
    headers = Headers(raw, first)
    return Head(method.decode(), path.decode(), text, target if query else path, headers, int(length)), end
