"""Clients that do harm: do they cost the others, and does anything stay behind?

python bench/sidecar_clients.py [--json FILE] [--seconds 5] [--rounds 3]

slow      1,000 peers that are silent, drip a header, drip a body, or do not read their stream, beside 32 healthy
          clients: the healthy ones' p50 and p99 without and with them (goal: p99 below twice)
aborts    10,000 requests whose clients leave in the queue, before the first byte or in the middle of a stream:
          connections, file descriptors, queued and running requests and bytes that the sidecar has afterwards
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from typing import Any

from sidecar_load import command
from sidecar_load.client import load, request
from sidecar_load.upstream import COMPLETION, ENDING_STREAM, STREAM
from sidecar_load.ways import Way, sidecar, upstream

from uellm.http.loop import factory

HEALTHY, SLOW, ABORTED, AT_ONCE = 32, 1000, 10_000, 200
LEFT = ("uellm_requests_active", "uellm_requests_in_flight", "uellm_requests_queued", "uellm_body_bytes")


class Slow(asyncio.Protocol):
    """One slow peer, of one of four kinds; one that was cut comes again."""

    def __init__(self, port: int, kind: int) -> None:
        self.port, self.kind, self.ended = port, kind, False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.kind == 1:
            transport.write(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nX-Slow: ")
        elif self.kind == 2:
            transport.write(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n")
        elif self.kind == 3:
            transport.write(request("/v1/chat/completions"))
            transport.pause_reading()
        self.drip()

    def drip(self) -> None:
        if not self.ended:
            if self.kind in (1, 2):
                self.transport.write(b"x")
            asyncio.get_running_loop().call_later(1 + random.random(), self.drip)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended:
            self.ended = True
            asyncio.get_running_loop().create_task(attack(self.port, self.kind))


async def attack(port: int, kind: int) -> Slow:
    _, peer = await asyncio.get_running_loop().create_connection(lambda: Slow(port, kind), "127.0.0.1", port)
    return peer


async def healthy(way: Way, seconds: float, peers: int) -> dict[str, float]:
    """Latencies of the healthy clients while so many slow peers are connected."""
    slow = [await attack(way.port, number % 4) for number in range(peers)]
    seen = await load(way.port, "/v1/completions", HEALTHY, seconds, mark=lambda: None)
    for peer in slow:
        peer.ended = True
        peer.transport.abort()
    taken_ms = sorted(second * 1e3 for second in seen.first_s)
    return {
        "p50Milliseconds": statistics.median(taken_ms),
        "p99Milliseconds": taken_ms[int(len(taken_ms) * 0.99)],
        "failed": seen.failed,
    }


async def leave(port: int, path: str, after_s: float) -> None:
    """Ask and go."""
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port)
    transport.write(request(path))
    await asyncio.sleep(after_s)
    transport.abort()


async def aborts(port: int) -> None:
    """All of the requests, so many at once; each leaves at a moment of its own."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with turn:
            path = random.choice((STREAM, ENDING_STREAM, "/v1/embeddings", COMPLETION))
            await leave(port, path, random.random() * 0.1)

    await asyncio.gather(*(one() for _ in range(ABORTED)))


def slow_peers(seconds: float, rounds: int) -> dict[str, Any]:
    """Without and with the slow peers, in turn; medians."""
    runs: dict[int, list[dict[str, float]]] = {0: [], SLOW: []}
    with upstream() as engine, sidecar(engine.port) as way:
        for _ in range(rounds):
            for peers, taken in runs.items():
                with asyncio.Runner(loop_factory=factory()) as runner:
                    taken.append(runner.run(healthy(way, seconds, peers)))
    found = {
        str(peers): {figure: statistics.median(run[figure] for run in taken) for figure in taken[0]}
        for peers, taken in runs.items()
    }
    return found | {"p99Ratio": found[str(SLOW)]["p99Milliseconds"] / found["0"]["p99Milliseconds"]}


def aborted(mode: str) -> dict[str, Any]:
    """What is left of the requests, and how they were counted."""
    with upstream() as engine, sidecar(engine.port, mode) as way:
        time.sleep(1)
        files = way.open_files()
        with asyncio.Runner(loop_factory=factory()) as runner:
            runner.run(aborts(way.port))
        deadline_s = time.monotonic() + 30
        while way.figure("uellm_requests_active") and time.monotonic() < deadline_s:
            time.sleep(0.1)
        time.sleep(3)
        left = {name: way.figure(name) for name in LEFT}
        left["uellm_requests_active"] -= 1  # the one that asks
        left["file descriptors"] = max(0, way.open_files() - files)
        return {"left": left, "counted": way.figure("uellm_requests_total")}


def results(seconds: float, rounds: int) -> dict[str, Any]:
    """All the figures."""
    slow = slow_peers(seconds, rounds)
    return {"slow": slow, "aborts": {mode: aborted(mode) for mode in ("straight", "queue")}}


def show(found: dict[str, Any]) -> None:
    """Print them."""
    slow = found["slow"]
    for peers in ("0", str(SLOW)):
        print(f"{peers:>6} slow peers: healthy p50 {slow[peers]['p50Milliseconds']:.2f} ms, "
              f"p99 {slow[peers]['p99Milliseconds']:.2f} ms, {slow[peers]['failed']:.0f} failed")  # fmt: skip
    print(f"p99 with them: {slow['p99Ratio']:.2f}x")
    for mode, result in found["aborts"].items():
        left = ", ".join(f"{name} {value}" for name, value in result["left"].items())
        print(f"{ABORTED} aborts ({mode}): {result['counted']} counted; left: {left}")


if __name__ == "__main__":
    sys.exit(command.run("sidecar_clients", __doc__, results, show))
