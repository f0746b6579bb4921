"""A head that is read in one pass means what the strict reading of it says."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from uellm.http import RequestLimits
from uellm.http.head import Head, HeadFinder, HeadParser
from uellm.http.plain_head import plain_head

LIMITS = RequestLimits()

methods = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI", b"get", b"BREW", b"GE T", b""])
targets = st.one_of(
    st.sampled_from(
        [b"/", b"/v1/models?a=b?c", b"/?", b"*", b"http://h/x", b"//h/x", b"/a#b", b"/a|b", b"/%zz", b"/a b"]
    ),
    st.binary(max_size=8).map(lambda data: b"/" + data),
)
versions = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 "])
names = st.one_of(
    st.sampled_from([b"Host", b"host", b"Content-Length", b"Connection", b"Transfer-Encoding", b"Upgrade", b"Expect"]),
    st.sampled_from(
        [b"X-A", b"x-a", b"X_b", b"Accept", b"Keep-Alive", b"Proxy-Connection", b"Content-Length ", b"a:b", b""]
    ),
    st.binary(max_size=4),
)
values = st.one_of(
    st.sampled_from(
        [b"h", b"h:80", b"u@h", b"12", b"012", b"0", b"1 ", b"1\t", b"+1", b"1" * 15, b"1" * 16, b"1, 1", b"a: b"]
    ),
    st.sampled_from(
        [b"keep-alive", b"close", b"Keep-Alive", b"chunked", b"h2c", b"100-continue", b"\xe4", b"a\x00", b"a b"]
    ),
    st.binary(max_size=6),
)
colons = st.sampled_from([b": "] * 8 + [b":", b":  ", b" : ", b":\t", b""])
ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b" \r\n", b"\r\n "])
fields = st.builds(lambda *parts: b"".join(parts), names, colons, values, ends)


def strictly(data: bytes) -> tuple[Head, int]:
    end = HeadFinder(LIMITS).find(data)
    assert end
    return HeadParser().parse(data[:end]), end


@settings(max_examples=2000)
@given(methods, targets, versions, st.lists(fields, max_size=5), st.booleans(), st.binary(max_size=20))
@example(b"POST", b"/v1/completions?a=b", b"HTTP/1.1", [b"X-A: 1\r\n", b"Content-Length: 2\r\n"], True, b"{}")
def test_a_plain_head_is_read_as_strictly_as_any_other(method, target, version, lines, hosted, behind):
    data = b"%b %b %b\r\n" % (method, target, version) + b"Host: h\r\n" * hosted + b"".join(lines) + b"\r\n" + behind
    found = plain_head(data, LIMITS)
    if found is None:
        return
    (head, end), (strict, strict_end) = found, strictly(data)
    assert end == strict_end
    assert head.headers.raw == strict.headers.raw
    for name, _ in head.headers.raw:
        assert head.headers.get_all(name.decode()) == strict.headers.get_all(name.decode())
    for each in ("method", "path", "query", "target", "http_10", "keep_alive", "length", "expects"):
        assert getattr(head, each) == getattr(strict, each)


def test_the_heads_of_common_clients_are_plain():
    for lines in (
        b"Host: 10.0.0.1:8000\r\nContent-Type: application/json\r\nContent-Length: 2\r\n",
        b"Host: h\r\nConnection: keep-alive\r\nX-Stainless-Lang: python\r\ncontent-length: 2\r\n",
    ):
        assert plain_head(b"POST /v1/chat/completions HTTP/1.1\r\n" + lines + b"\r\n{}", LIMITS) is not None


def test_a_plain_head_over_a_limit_is_left_to_the_strict_reading():
    data = b"GET / HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n"
    assert plain_head(data, RequestLimits(headers=2)) is not None
    for limits in (RequestLimits(headers=1), RequestLimits(line_bytes=20), RequestLimits(headers_bytes=20)):
        assert plain_head(data, limits) is None
