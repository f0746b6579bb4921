"""Request heads: what is accepted, what it means, and what is refused before a parser sees it."""

from __future__ import annotations

import pytest

from uellm.http import Fault, RequestLimits
from uellm.http.head import Head, HeadFinder, HeadParser, begins_well, without_blank_lines


def head_of(data: bytes) -> Head:
    end = HeadFinder(RequestLimits()).find(data)
    assert end == len(data)
    return HeadParser().parse(data)


def status_of(data: bytes) -> int:
    with pytest.raises(Fault) as fault:
        head_of(data)
    return fault.value.status


def test_a_head_says_method_path_query_and_headers_in_their_order():
    head = head_of(b"PUT /a%20b?x=%2F&y HTTP/1.1\r\nHost: h:1\r\nX-A: 1\r\nx-a:  two \r\nContent-Length: 12\r\n\r\n")
    assert (head.method, head.path, head.query, head.target) == ("PUT", "/a%20b", "x=%2F&y", b"/a%20b?x=%2F&y")
    assert [name for name, _ in head.headers.raw] == [b"Host", b"X-A", b"x-a", b"Content-Length"]
    assert (head.headers.get("X-a"), head.headers.get_all("x-A")) == ("1", ["1", "two"])
    assert ("x-b" in head.headers, head.headers.get("x-b"), head.headers.get_all("x-b")) == (False, None, [])
    assert (head.length, head.keep_alive, head.http_10, head.expects) == (12, True, False, False)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b"GET / HTTP/1.1\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: x, CLOSE\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n", True),
        (b"GET / HTTP/1.0\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n", True),
    ],
)
def test_a_connection_is_kept_as_the_version_and_the_client_say(line, kept):
    assert head_of(line + b"Host: h\r\n\r\n").keep_alive is kept


def test_only_a_client_of_http_1_1_can_wait_to_be_told_to_go_on():
    assert head_of(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n").expects
    assert not head_of(b"POST / HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n").expects


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://elsewhere:1/v1/models?q=1", "/v1/models", "q=1"),
        (b"http://elsewhere", "/", ""),
        (b"//elsewhere/v1", "//elsewhere/v1", ""),
        (b"*", "*", ""),
    ],
)
def test_the_host_in_a_target_is_dropped_and_a_path_is_not_read_as_one(target, path, query):
    head = head_of(b"OPTIONS %b HTTP/1.1\r\nHost: h\r\n\r\n" % target)
    assert (head.path, head.query) == (path, query)


@pytest.mark.parametrize(
    "target",
    [b"v1/models", b"ftp://h/x", b"http:///x", b"/a#b", b"/a b", b"/\xc3\xa9", b"/\x7f", b"/\t"],
)
def test_targets_that_no_client_sends_are_refused(target):
    assert status_of(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target) == 400


@pytest.mark.parametrize(
    "fields",
    [
        *(b"Host : h", b" Host: h", b"Host: h\r\n\tfolded", b"Ho st: h", b"Host\x00: h", b": h", b"Host"),
        *(
            b"Host: h\r\nX: \x00",
            b"Host: h\r\nX: a\rb",
            b"Host: h\nX: a",
            b"Host: h\r\nX: \x1b[0m",
            b"Host: h\r\nX: \x7f",
        ),
        *(b"X: a", b"Host: h\r\nHost: h", b"Host: a b", b"Host: a,b", b"Host: u@h", b"Host: h/x"),
        *(
            b"Host: h\r\nContent-Length: %b" % value
            for value in (b"", b"-1", b"+1", b"1.0", b"0x1", b"1, 1", b"9" * 20)
        ),
        b"Host: h\r\nContent-Length: 1\r\nContent-Length: 1",
        b"Host: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        *(b"Host: h\r\nTransfer-Encoding: %b" % value for value in (b"gzip, chunked", b"chunked, chunked", b"x", b"")),
        b"Host: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ],
)
def test_fields_that_two_parsers_could_read_differently_are_refused(fields):
    assert status_of(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % fields) == 400


@pytest.mark.parametrize(
    "line", [b"GET /", b"GET / HTTP/1.2", b"GET / HTTP/2.0", b"GET  / HTTP/1.1", b"GET\t/ HTTP/1.1", b"G(T / HTTP/1.1"]
)
def test_other_request_lines_are_refused(line):
    assert status_of(line + b"\r\nHost: h\r\n\r\n") == 400


def test_chunks_are_not_for_http_1_0():
    assert status_of(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n") == 400


def test_too_long_input_is_refused_before_its_end():
    limits = RequestLimits(line_bytes=100, headers_bytes=200)
    for data, status in [(b"GET /" + b"x" * 100, 414), (b"GET / HTTP/1.1\r\nX: " + b"x" * 200, 431)]:
        with pytest.raises(Fault) as fault:
            HeadFinder(limits).find(data)
        assert fault.value.status == status
    exact = b"GET / HTTP/1.1\r\nX: " + b"x" * 193 + b"\r\n\r\n"
    assert HeadFinder(limits).find(exact) == len(exact)


class Searched(bytearray):
    """Counts the bytes that are searched."""

    searched = 0

    def find(self, wanted, begin):
        self.searched += len(self) - begin
        return super().find(wanted, begin)


def test_a_long_line_that_drips_in_is_searched_once():
    finder, head = HeadFinder(RequestLimits()), Searched(b"GET / HTTP/1.1\r\nHost: h\r\nX: ")
    assert finder.find(head) == 0
    for _ in range(10_000):
        head += b"x"
        assert finder.find(head) == 0
    head += b"\r\n\r\n"
    assert finder.find(head) == len(head)
    assert head.searched < 2 * len(head)


def test_a_handshake_of_tls_cannot_begin_a_request():
    assert not begins_well(b"\x16\x03\x01")
    assert begins_well(b"GET")


@pytest.mark.parametrize(
    ("data", "rest"),
    [
        (b"GET", b"GET"),
        (b"\r\nGET\r\n", b"GET\r\n"),
        (b"\r\n" * 9 + b"\r", b"\r"),
        (b"\r\n\r\n", b""),
        (b"\r\n\rGET", b"\rGET"),
        (b"\r\n\n\r\nGET", b"\r\n\n\r\nGET"),
        (b"\n", b"\n"),
    ],
)
def test_only_whole_blank_lines_before_a_request_are_passed_over(data, rest):
    assert without_blank_lines(data) == rest


def parse_chunks(data: bytes) -> tuple[bytes, HeadParser]:
    parser = HeadParser()
    parser.parse(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    parser.decode(data)
    return b"".join(parser.decoded), parser


def test_chunks_are_joined_and_their_extensions_and_trailers_dropped():
    body, parser = parse_chunks(b"3;a=b\r\nabc\r\n00a\r\n0123456789\r\n0\r\nX: y\r\nHost: i\r\n\r\n")
    assert (body, parser.complete, parser.surplus) == (b"abc0123456789", True, False)


def test_what_follows_the_last_chunk_is_neither_body_nor_request():
    body, parser = parse_chunks(b"3\r\nabc\r\n0\r\n\r\nPOST /sleep HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nxy")
    assert (body, parser.complete, parser.surplus) == (b"abc", True, True)


@pytest.mark.parametrize(
    "data",
    [
        *(b"3\nabc\r\n0\r\n\r\n", b"3 \r\nabc\r\n0\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n", b"-3\r\nabc\r\n0\r\n\r\n"),
        *(
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"3\r\nabc0\r\n\r\n",
            b"\r\n3\r\nabc\r\n0\r\n\r\n",
            b";\r\n",
        ),
        *(
            b"fffffffffffffffff\r\n",
            b"3;\x00\r\nabc\r\n0\r\n\r\n",
            b"3\rabc\r\n0\r\n\r\n",
            b"3\r\nabc\r\n0\r\nX : y\r\n\r\n",
        ),
    ],
)
def test_chunks_of_another_form_are_refused(data):
    with pytest.raises(Fault) as fault:
        parse_chunks(data)
    assert fault.value.status == 400
