"""The head of a request: found in the bytes, checked line by line, and only then given to the parser.

llhttp accepts some input that RFC 9112 forbids, and two parsers may read such input differently (request smuggling).
Every line must therefore have the strict form before any parser sees it, and the body's length must be unambiguous.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import httptools

from uellm.http.message import Fault, Headers, RequestLimits

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(_TOKEN + rb" [\x21\x22\x24-\x7e]+ HTTP/1\.[01]\r\n")
_FIELD_LINE = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n")
HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+=:\[\]-]*")
_LENGTH = re.compile(rb"[0-9]{1,15}")

_BROKEN = "the request cannot be read as HTTP/1.1"
_ONCE = (b"host", b"content-length", b"transfer-encoding")


class HeadFinder:
    """Finds the end of a head in bytes that arrive in pieces; each byte is examined once."""

    __slots__ = ("_checked", "_fields", "_limits", "_line_bytes", "_searched")

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._checked = self._searched = self._line_bytes = self._fields = 0

    def find(self, data: bytes | bytearray) -> int:
        """Length of the head at the start of `data`; 0 while it is incomplete. Raises Fault for a bad line.

        `data` begins with the data of the last call.
        """
        while (end := data.find(b"\n", self._searched) + 1) > 0:
            line = bytes(data[self._checked : end])
            self._checked = self._searched = end
            if not self._line_bytes:
                self._begin(line)
            elif line == b"\r\n":
                self._measure(end)
                self._checked = self._searched = self._line_bytes = self._fields = 0
                return end
            else:
                self._count(line)
        self._searched = len(data)
        self._measure(len(data))
        return 0

    def _begin(self, line: bytes) -> None:
        if len(line) > self._limits.line_bytes:
            raise Fault(414, f"the request line exceeds {self._limits.line_bytes} bytes")
        if _REQUEST_LINE.fullmatch(line) is None:
            raise Fault(400, _BROKEN)
        self._line_bytes = len(line)

    def _count(self, line: bytes) -> None:
        self._fields += 1
        if self._fields > self._limits.headers:
            raise Fault(431, f"there are more than {self._limits.headers} headers")
        if _FIELD_LINE.fullmatch(line) is None:
            raise Fault(400, _BROKEN)

    def _measure(self, size_bytes: int) -> None:
        limits = self._limits
        if not self._line_bytes and size_bytes > limits.line_bytes:
            raise Fault(414, f"the request line exceeds {limits.line_bytes} bytes")
        if size_bytes - self._line_bytes > limits.headers_bytes:
            raise Fault(431, f"the headers exceed {limits.headers_bytes} bytes")


def without_blank_lines(data: bytes | bytearray) -> bytes | bytearray:
    """What follows the blank lines that some clients send before a request, however many they are."""
    lines = (len(data) - len(data.lstrip(b"\r\n"))) // 2
    return data[2 * lines :] if data.startswith(b"\r\n" * lines) else data


def begins_well(data: bytes | bytearray) -> bool:
    """Whether the first byte can begin a method. It refuses, for example, a TLS handshake at once."""
    return 0x41 <= data[0] <= 0x5A or 0x61 <= data[0] <= 0x7A


@dataclass(slots=True)
class Head:
    """A request without its body. `path` and `query` are as they were sent, still encoded."""

    method: str
    path: str
    query: str
    target: bytes
    """Path and query, as they are sent to the next server."""
    headers: Headers
    length: int
    """Bytes of the body; -1: chunked."""
    http_10: bool = False
    keep_alive: bool = True
    expects: bool = False
    """The client waits for `100 Continue` before it sends the body."""


_CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
"""A head before chunks. Nothing of it is kept."""


_NO_PARSER = httptools.HttpRequestParser(object())
"""Stands where a request had its parser. It is given no data."""


class HeadParser:
    """httptools' parser for one request. `decode` takes what follows the head of a request in chunks."""

    __slots__ = ("_fields", "_in_body", "_parser", "_target", "_upgrade", "complete", "decoded", "surplus")

    def __init__(self) -> None:
        self._fields: list[tuple[bytes, bytes]] = []
        self._target = b""
        self._in_body = self._upgrade = False
        self.complete = False
        self.surplus = False
        """Bytes followed the end of the request in the same data. Where they began is unknown, so they are lost."""
        self.decoded: list[bytes] = []
        """Bytes of the body, decoded by the last call."""
        self._parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        """httptools: a message begins, this one or another behind it."""
        self.surplus = self.complete

    def on_url(self, url: bytes) -> None:
        """httptools: the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a field. Trailers are dropped, because nothing here reads or forwards them."""
        if not self._in_body:
            self._fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """httptools: the head is complete."""
        self._in_body = True

    def on_body(self, piece: bytes) -> None:
        """httptools: a piece of the body. After the end of the message it would belong to a second request."""
        if not self.complete:
            self.decoded.append(piece)

    def on_message_complete(self) -> None:
        """httptools: the message is complete."""
        self.complete = True

    def parse(self, head: bytes) -> Head:
        """Parse bytes that HeadFinder found. Raises Fault."""
        try:
            self._feed(head)
        except httptools.HttpParserError:
            raise Fault(400, _BROKEN) from None
        if not self._in_body:
            raise Fault(400, _BROKEN)
        self.complete = False
        http_10 = self._parser.get_http_version() == "1.0"
        method = self._parser.get_method().decode("ascii")
        path, query = _split(method, self._target)
        length = _length(_framing_fields(self._fields, http_10=http_10), http_10=http_10)
        headers = Headers(self._fields)
        keep_alive = _keep_alive(headers, http_10=http_10)
        expects = not http_10 and (headers.get("expect") or "").lower() == "100-continue"
        if length >= 0:
            self._parser = _NO_PARSER  # the old one knows us: left so, only the collector could free the two
        elif self._upgrade:
            # The parser stops at the head of a request for another protocol, and would not take its chunks.
            self._parser = httptools.HttpRequestParser(self)
            self._feed(_CHUNKED)
        target = (f"{path}?{query}" if query else path).encode("ascii")
        return Head(method, path, query, target, headers, length, http_10, keep_alive, expects)

    def decode(self, data: bytes) -> None:
        """Take more of a body in chunks. Raises Fault."""
        self.decoded = []
        try:
            self._feed(data)
        except httptools.HttpParserError:
            if not self.complete:
                raise Fault(400, "the body's framing is broken") from None
            self.surplus = True
        if self.complete:
            self._parser = _NO_PARSER

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # One that we do not take part in: the request is an ordinary one.
            self._upgrade = True
            self.surplus = upgrade.args[0] < len(data)


def _keep_alive(headers: Headers, *, http_10: bool) -> bool:
    if "connection" not in headers:
        return not http_10
    options = {option.strip().lower() for value in headers.get_all("connection") for option in value.split(",")}
    return "keep-alive" in options if http_10 else "close" not in options


def _split(method: str, target: bytes) -> tuple[str, str]:
    if method != "CONNECT" and target[:1] not in (b"/", b"*"):
        target = _origin_form(target)
    path, _, query = target.decode("ascii").partition("?")
    return path, query


def _origin_form(target: bytes) -> bytes:
    """Path and query of an absolute target: which host it names chooses nothing here."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise Fault(400, "the request's target cannot be read") from None
    if url.schema is None or url.schema.lower() not in (b"http", b"https") or url.host is None:
        raise Fault(400, "the request's target cannot be read")
    return (url.path or b"/") + (b"?" + url.query if url.query else b"")


def _framing_fields(fields: list[tuple[bytes, bytes]], *, http_10: bool) -> dict[bytes, bytes]:
    """The fields that must not come twice. Raises Fault for those that do, and for a missing or odd host."""
    known: dict[bytes, bytes] = {}
    for name, value in fields:
        lowered = name.lower()
        if lowered in _ONCE:
            if lowered in known:
                raise Fault(400, f"the header {lowered.decode()} comes twice")
            known[lowered] = value
    host = known.get(b"host", b"" if http_10 else None)
    if host is None or HOST.fullmatch(host) is None:
        raise Fault(400, "the request has no usable Host header")
    return known


def _length(known: dict[bytes, bytes], *, http_10: bool) -> int:
    length, encoding = known.get(b"content-length"), known.get(b"transfer-encoding")
    if encoding is not None:
        if length is not None:
            raise Fault(400, "the request has both Content-Length and Transfer-Encoding")
        if http_10 or encoding.lower() != b"chunked":
            raise Fault(400, "the only Transfer-Encoding taken is chunked, in HTTP/1.1")
        return -1
    if length is None:
        return 0
    if _LENGTH.fullmatch(length) is None:
        raise Fault(400, "the Content-Length is not a number")
    return int(length)
