"""Requests that two parsers could read differently, and a server that records every byte it gets."""

from __future__ import annotations

import asyncio

from uellm.http import EngineAddress

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
    "a chunk size with a space": POST + b"Transfer-Encoding: chunked\r\n\r\n2 \r\n{}\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk size before a bare line feed": POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n" + SMUGGLED,
    "an extension before a bare line feed": POST + b"Transfer-Encoding: chunked\r\n\r\n2;a\n{}\r\n0\r\n\r\n" + SMUGGLED,
    "chunked for an old version": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked behind another coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a tab before the coding's name and one inside": POST
    + b"Transfer-Encoding:\tchun\tked\r\n\r\n0\r\n\r\n"
    + SMUGGLED,
    "a null before the colon": POST + b"Transfer-Encoding\x00: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "an empty content-length": POST + b"Content-Length:\r\n\r\n" + SMUGGLED,
    "a length too large for any number": POST + b"Content-Length: 18446744073709551618\r\n\r\n{}" + SMUGGLED,
    "a space in the target": b"POST /v1/completions /sleep HTTP/1.1\r\nHost: h\r\n\r\n" + SMUGGLED,
    "a line feed in the target": b"POST /v1\n/sleep HTTP/1.1\r\nHost: h\r\n\r\n",
    "a host that names a user": b"POST / HTTP/1.1\r\nHost: h@i\r\nContent-Length: 2\r\n\r\n{}",
    "a tunnel": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: h\r\n\r\n",
}


class Recorder:
    """An engine without a parser: it records every byte it receives, except for the sidecar's own questions."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.address = EngineAddress("127.0.0.1", 1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await _read(reader):
            if not data.startswith((b"GET /health ", b"GET /metrics ", b"GET /v1/models ")):
                self.received.append(data)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(65536)
    except ConnectionError:
        return b""


HOPS = (
    b"Connection: close, x-mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=1\r\nProxy-Connection: keep-alive\r\n"
    b"TE: trailers\r\nTrailer: X\r\nUpgrade: h2c\r\nProxy-Authorization: Basic x\r\nExpect: nothing\r\n"
)
REWRITTEN = {
    "hop-by-hop headers": POST + HOPS + b"Content-Length: 2\r\n\r\n{}",
    "chunks, extensions and trailers": POST
    + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\n{\r\n1\r\n}\r\n0\r\nX-Late: 1\r\n\r\n",
    "a request hidden in a body": POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "a request behind the last chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + SMUGGLED,
    "an absolute target": POST.replace(b"/v1", b"http://169.254.169.254/v1", 1)
    + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}",
    "a length with a blank behind it": POST + b"Connection: close\r\nContent-Length: 2 \r\n\r\n{}",
}
