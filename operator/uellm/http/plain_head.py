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
    raw: list[tuple[bytes, bytes]] = []
    first: dict[bytes, bytes] = {}
    for line in fields[:-2].split(b"\r\n"):
        name, _, value = line.partition(b": ")
        raw.append((name, value))
        first[name.lower()] = value
    # Fewer names than fields: some come twice.
    if len(first) != len(raw) or len(raw) > limits.headers or not first.keys().isdisjoint(_OTHERS):
        return None
    host, length = first.get(b"host"), first.get(b"content-length", b"0")
    if host is None or HOST.fullmatch(host) is None or first.get(b"connection") not in _KEPT:
        return None
    if not length.isdigit() or len(length) > _MOST_LENGTH_DIGITS:
        return None
    head = Head(
        method=method.decode(),
        path=path.decode(),
        query=query.decode() if query else "",
        target=target if query else path,
        headers=Headers(raw, first),
        http_10=False,
        keep_alive=True,
        length=int(length),
        expects=False,
    )
    return head, end
