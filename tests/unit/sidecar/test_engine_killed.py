"""The engine's process is killed in the middle of its streams."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE

import pytest

from uellm.http import EngineAddress
from uellm.sidecar.engine.connection import EngineHealth

STREAMS = 20

ENGINE = r"""
import asyncio

async def serve(reader, writer):
    while head := await reader.readuntil(b"\r\n\r\n"):
        if head.startswith(b"GET "):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            continue
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        event = b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n'
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture
async def process():
    running = await asyncio.create_subprocess_exec(sys.executable, "-c", ENGINE, stdout=PIPE)
    yield running
    if running.returncode is None:
        running.kill()
    await running.wait()


async def test_every_stream_ends_with_an_error_and_none_with_a_false_done(process, launch, eventually):
    port = int(await process.stdout.readline())
    harness = await launch(engine=EngineAddress("127.0.0.1", port))

    async def stream(started: asyncio.Semaphore) -> bytes:
        async with harness.post(b'{"prompt": "x", "stream": true}', path="/v1/completions") as response:
            received = await response.content.readuntil(b"\n\n")
            started.release()
            return received + await response.read()

    started = asyncio.Semaphore(0)
    streams = [asyncio.create_task(stream(started)) for _ in range(STREAMS)]
    for _ in streams:
        await started.acquire()
    process.send_signal(signal.SIGKILL)
    for received in await asyncio.gather(*streams):
        first, error, rest = received.split(b"\n\n")
        assert json.loads(first.removeprefix(b"data: "))["choices"][0]["text"] == "a"
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "engine_lost"
        assert (b"[DONE]" in received, rest) == (False, b"")
    assert harness.outcomes() == {"engine_lost": STREAMS}
    await eventually(lambda: harness.sidecar.engine.health is EngineHealth.GONE)
    assert harness.sidecar.dispatcher.in_flight == 0
    assert harness.sidecar.engine.pool.in_use == 0
