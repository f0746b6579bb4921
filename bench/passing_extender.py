"""An extender that lets every pod pass on every node, and reads nothing: what the protocol alone costs kube-scheduler.

python bench/passing_extender.py PORT NODES
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop


def answer(document: object) -> bytes:
    """A whole answer."""
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Passing(asyncio.Protocol):
    """Answers what was written beforehand when a request is complete."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if blank and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0):
            self._buffer = b""
            self._transport.write(self._answers[head.split()[1]])  # type: ignore[attr-defined]


async def serve(port: int, nodes: int) -> None:
    """Until the process is ended."""
    names = [f"kwok-{index}" for index in range(nodes)]
    answers = {
        b"/filter": answer({"NodeNames": names, "Nodes": None, "FailedNodes": {}, "Error": ""}),
        b"/prioritize": answer([{"Host": name, "Score": 10} for name in names]),
        b"/readyz": answer("ok"),
    }
    server = await asyncio.get_running_loop().create_server(lambda: Passing(answers), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
