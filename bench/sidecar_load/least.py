"""The least that a relay costs in Python: what the sidecar adds to it are the sidecar's own functions.

python -m sidecar_load.least ENGINE

uvloop, httptools, and connections to the engine that are kept. It reads a request's head and its JSON body, sends both
on, and passes the answer on as it comes. It checks nothing, measures nothing, learns nothing, and waits for no turn.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from urllib.parse import urlsplit

import httptools

from uellm.http.loop import run

_NOT_PASSED_ON = frozenset((b"connection", b"content-length", b"transfer-encoding"))


class ToEngine(asyncio.Protocol):
    """A connection to the engine, with one request at a time."""

    def __init__(self, idle: deque[ToEngine]) -> None:
        self.idle = idle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self, client: asyncio.Transport, message: tuple[bytes, bytes]) -> None:
        self.client = client
        self.parser = httptools.HttpResponseParser(self)
        self.transport.writelines(message)

    def data_received(self, data: bytes) -> None:
        if self.client.is_closing():
            self.transport.abort()  # a stream without an end would go on for nobody
            return
        self.parser.feed_data(data)
        self.client.write(data)

    def on_message_complete(self) -> None:
        self.idle.append(self)


class FromClient(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, engine: tuple[str, int], idle: deque[ToEngine]) -> None:
        self.engine, self.idle = engine, idle
        self.loop = asyncio.get_running_loop()
        self.connecting: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.begin()

    def begin(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.headers: list[bytes] = []
        self.body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in _NOT_PASSED_ON:
            self.headers.append(b"%b: %b\r\n" % (name, value))

    def on_body(self, piece: bytes) -> None:
        self.body.append(piece)

    def on_message_complete(self) -> None:
        body = b"".join(self.body)
        method, fields = self.parser.get_method(), b"".join(self.headers)
        if body:
            json.loads(body)
        message = (b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (method, self.url, fields, len(body)), body)
        self.begin()
        if self.idle:
            self.idle.pop().ask(self.transport, message)
            return
        task = self.loop.create_task(self.connect(message))
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)

    async def connect(self, message: tuple[bytes, bytes]) -> None:
        _, connection = await self.loop.create_connection(lambda: ToEngine(self.idle), *self.engine)
        connection.ask(self.transport, message)


async def serve(engine: str) -> None:
    """Print the port and serve until killed."""
    parts, idle = urlsplit(engine), deque[ToEngine]()
    address = (parts.hostname or "", parts.port or 0)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: FromClient(address, idle), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    run(serve(sys.argv[1]))
