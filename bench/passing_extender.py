"""An extender that lets every pod pass on every node asked about: what the protocol alone costs kube-scheduler.

python bench/passing_extender.py PORT NODES
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop


def answer(body: bytes) -> bytes:
    """A whole answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def passed(body: bytes) -> bytes:
    """The answer to a filter call: the very nodes of the question. The scheduler does not ask about full ones."""
    _, key, rest = body.partition(b'"NodeNames":')
    if not key:
        raise ValueError("the question names no nodes; the scheduler has nodeCacheCapable set")
    names = rest[: rest.index(b"]") + 1]
    return answer(b'{"NodeNames":%b,"Nodes":null,"FailedNodes":{},"Error":""}' % names)


class Passing(asyncio.Protocol):
    """Answers when a request is complete: with its own nodes, or what was written beforehand."""

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
            path = head.split()[1]
            answered = passed(body) if path == b"/filter" else self._answers[path]
            self._transport.write(answered)  # type: ignore[attr-defined]


async def serve(port: int, nodes: int) -> None:
    """Until the process is ended."""
    names = [f"kwok-{index}" for index in range(nodes)]
    answers = {
        b"/prioritize": answer(json.dumps([{"Host": name, "Score": 10} for name in names]).encode()),
        b"/readyz": answer(b'"ok"'),
    }
    server = await asyncio.get_running_loop().create_server(lambda: Passing(answers), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
