"""Requests that two parsers could read differently: refused, or re-framed so that only one reading is left."""

from __future__ import annotations

import pytest

from uellm.sidecar.http import Limits

POST = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\n"
SMUGGLED = b"GET /sleep HTTP/1.1\r\nHost: h\r\n\r\n"

CORPUS = {
    "content-length and chunked": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked and content-length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two content-lengths": POST + b"Content-Length: 0\r\nContent-Length: 33\r\n\r\n" + SMUGGLED,
    "a list of content-lengths": POST + b"Content-Length: 0, 33\r\n\r\n" + SMUGGLED,
    "a signed content-length": POST + b"Content-Length: +2\r\n\r\n{}" + SMUGGLED,
    "a hexadecimal content-length": POST + b"Content-Length: 0x2\r\n\r\n{}" + SMUGGLED,
    "two transfer-encodings": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"
    + SMUGGLED,
    "an unknown transfer-encoding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a folded header": POST + b"X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}" + SMUGGLED,
    "bare line feeds": POST.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}" + SMUGGLED,
    "a bare carriage return": POST + b"X: a\rContent-Length: 33\r\n\r\n" + SMUGGLED,
    "a control character": POST + b"X: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "an invalid chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + SMUGGLED,
    "a chunk size that overflows": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + SMUGGLED,
    "a chunk longer than its size": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n" + SMUGGLED,
    "no host": b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}" + SMUGGLED,
    "two hosts": POST + b"Host: i\r\nContent-Length: 2\r\n\r\n{}" + SMUGGLED,
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00",
    "a version from elsewhere": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "neither ASCII nor UTF-8": POST + b"X: \xff\xfe\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    "a tunnel": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: h\r\n\r\n",
}


@pytest.mark.parametrize("sent", CORPUS.values(), ids=CORPUS)
async def test_ambiguous_requests_never_reach_the_engine_as_two(engine, launch, sent):
    harness = await launch(limits=Limits(body_deadline_s=0.2))
    answer = await harness.raw(sent)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert b"sleep" not in answer
    assert engine.received == []
    assert sum(harness.outcomes().values()) >= 1


async def test_an_absolute_target_does_not_choose_another_host(engine, harness):
    head = b"GET http://169.254.169.254/v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert b"200 OK" in await harness.raw(head)
    assert [r.path for r in engine.received] == ["/v1/models"]


async def test_what_cannot_be_read_is_quoted_nowhere(harness, caplog):
    answer = await harness.raw(b"POST /planted-secret\x01 HTTP/1.1\r\nplanted secret\r\n\r\n")
    assert b"planted" not in answer
    assert "planted" not in caplog.text
