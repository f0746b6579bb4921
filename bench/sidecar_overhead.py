"""What the sidecar adds to a request: the same calls straight to a bare engine and through `uellm sidecar`, in turn.

    python bench/sidecar_overhead.py [--json FILE] [--seconds 5]

    short, 1 client      one short answer after the other: the added latency
    short, 64 clients    as many as go through: requests a second, and CPU time of the sidecar for each
    256 streams          an event every 50 ms on each: added time to the first byte, and CPU time for each event

The engine is a few lines of asyncio that answer at once, so that what is measured is the way and not the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

STREAMS, EVENT_INTERVAL_S = 256, 0.05
EVENT = b'data: {"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":" word"}]}\n\n'
SHORT = b'{"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":" word"}]}'
BODY = json.dumps({"model": "m", "prompt": "x" * 2000}).encode()
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class BareEngine(asyncio.Protocol):
    """Answers `/v1/completions` at once, and `/v1/chat/completions` as a stream without end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer, self.timer = transport, b"", None

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line.lower()[:15] == b"content-length:"), 0
            )
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            self.answer(head)

    def answer(self, head: bytes) -> None:
        if b" /v1/chat" in head:
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            self.event()
        else:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(SHORT), SHORT))

    def event(self) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        self.timer = asyncio.get_running_loop().call_later(EVENT_INTERVAL_S, self.event)

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer:
            self.timer.cancel()


async def engine() -> None:
    """The engine's process: prints its port and serves until it is killed."""
    server = await asyncio.get_running_loop().create_server(BareEngine, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@dataclass
class Client:
    """One connection that is used again and again."""

    port: int
    taken_ms: list[float] = field(default_factory=list)

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, path: bytes, until: bytes) -> None:
        start = time.perf_counter()
        head = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        self.writer.write(head % (path, len(BODY), BODY))
        await self.reader.readuntil(until)
        self.taken_ms.append((time.perf_counter() - start) * 1e3)


async def short(port: int, clients: int, seconds: float) -> tuple[list[float], int]:
    """Short answers one after the other on each of so many connections: latencies, and how many there were."""
    end = time.perf_counter() + seconds

    async def one() -> list[float]:
        async with Client(port) as client:
            await client.ask(b"/v1/completions", SHORT)
            client.taken_ms.clear()
            while time.perf_counter() < end:
                await client.ask(b"/v1/completions", SHORT)
            return client.taken_ms

    taken = [ms for each in await asyncio.gather(*(one() for _ in range(clients))) for ms in each]
    return taken, len(taken)


async def streams(port: int, seconds: float) -> tuple[list[float], int]:
    """Streams that start one after the other and then all run: times to the first byte, and events."""
    first_ms: list[float] = []
    events = 0

    async def one(number: int) -> None:
        nonlocal events
        await asyncio.sleep(seconds / 2 * number / STREAMS)
        async with Client(port) as client:
            await client.ask(b"/v1/chat/completions", EVENT)
            first_ms.extend(client.taken_ms)
            while piece := await client.reader.read(65536):
                events += piece.count(b"\n\n")

    running = [asyncio.create_task(one(number)) for number in range(STREAMS)]
    await asyncio.wait(running, timeout=seconds)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return first_ms, events


CASES = {
    "short, 1 client": lambda port, seconds: short(port, 1, seconds),
    "short, 64 clients": lambda port, seconds: short(port, 64, seconds),
    f"{STREAMS} streams": streams,
}


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def measure(case: str, port: int, way: str, sidecar_pid: int, seconds: float) -> dict[str, Any]:
    """One case, one way; `perSecond` and `cpuMicroseconds` go by requests, and by events where there are streams."""
    before_s = cpu_s(sidecar_pid)
    taken_ms, units = asyncio.run(CASES[case](port, seconds))
    return {
        "case": case,
        "way": way,
        "p50Milliseconds": round(statistics.median(taken_ms), 3),
        "p99Milliseconds": round(statistics.quantiles(taken_ms, n=100)[98], 3),
        "perSecond": round(units / seconds),
        "cpuMicroseconds": round((cpu_s(sidecar_pid) - before_s) / units * 1e6) if way == "sidecar" else None,
    }


@contextmanager
def processes() -> Iterator[tuple[int, int, int]]:
    """A bare engine and a sidecar before it: the engine's port, the sidecar's, and the sidecar's process id."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config, ExitStack() as stack:
        config.write("{classes: [], engine: {maxNumSeqs: 1024}}")
        config.flush()
        bare = stack.enter_context(Popen([sys.executable, __file__, "--engine"], stdout=PIPE, text=True))
        stack.callback(bare.kill)
        engine_port = int(bare.stdout.readline())
        command = [
            sys.executable,
            "-m",
            "uellm.cli.main",
            "sidecar",
            "--listen",
            "127.0.0.1:0",
            "--config",
            config.name,
        ]
        command += ["--engine", f"http://127.0.0.1:{engine_port}"]
        sidecar = stack.enter_context(Popen(command, stdout=DEVNULL, stderr=PIPE, text=True))
        stack.callback(sidecar.kill)
        port = int(re.search(r"serving on port (\d+)", sidecar.stderr.readline())[1])
        sidecar.stderr.readline()  # the engine is ready
        yield engine_port, port, sidecar.pid


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds for each case (5)")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        asyncio.run(engine())
    rows = []
    with processes() as (engine_port, sidecar_port, pid):
        for case in CASES:
            for way, port in (("straight", engine_port), ("sidecar", sidecar_port)):
                rows.append(measure(case, port, way, pid, args.seconds))
    print(f"{'case':<19}{'way':<10}{'p50 ms':>9}{'p99 ms':>9}{'per s':>9}{'sidecar CPU us':>16}")
    for row in rows:
        print(
            f"{row['case']:<19}{row['way']:<10}{row['p50Milliseconds']:>9.2f}{row['p99Milliseconds']:>9.2f}"
            f"{row['perSecond']:>9}{row['cpuMicroseconds'] or '':>16}"
        )
    if args.json:
        args.json.write_text(json.dumps({"benchmark": "sidecar_overhead", "results": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
