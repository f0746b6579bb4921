"""What the sidecar's proxy costs, beside nginx with `proxy_buffering off`: same load, same upstream, in turn.

    python bench/sidecar_proxy.py [--json FILE] [--seconds 5] [--rounds 3]

    events        256 streams without end, an event each 50 ms on each: CPU time of the proxy's process for one event
    recorded      the same with streams as real vLLM sent them, of every streamed route
    first byte    256 streams of 20 to 60 events, one after the other: time to the first byte of the body, and what a
                  way adds to the straight one's
    short         256 connections with one short answer after the other: CPU time of the proxy's process for one, and
                  so how many a second one core can do
    memory        10,000 requests of 32 KiB in the sidecar's queue: resident bytes

The ways that most clients take: chats that are streamed and do not ask for their usage, which the sidecar asks for and
takes out again; and completions that are not streamed, which the sidecar asks for as a stream and puts together.
nginx comes from Debian: apt-get install nginx-light. Where it is missing, the rest is measured without it. The
sidecar's gate is open, for how long a request waits for its turn is the scheduler's matter; all else is as
`uellm sidecar` runs it. Figures are medians over rounds that take turns between the ways. CPU time is the kernel's
for the proxy's process alone, so neither the load generator nor the upstream is in it, however few cores there are;
the times to the first byte are wall clock, and hold on a machine that is quiet.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from contextlib import ExitStack
from typing import Any

from sidecar_load import command
from sidecar_load.client import load, request
from sidecar_load.upstream import COMPLETION, ENDING_STREAM, PLAYED, STREAM
from sidecar_load.ways import NO_NGINX, Way, nginx, sidecar, upstream

from uellm.http.loop import factory

STREAMS = 256
WARM_S = 4.0
"""Streams that began together have lengths of their own: by then they begin and end at moments of their own."""
QUEUED, QUEUED_BYTES = 10_000, 32 * 1024


def measured(way: Way, path: str, seconds: float) -> dict[str, float]:
    """One run of one way: microseconds of CPU for an event and for an answer, milliseconds to the first byte."""
    before_s = 0.0

    def mark() -> None:
        nonlocal before_s
        before_s = way.cpu_s()

    with asyncio.Runner(loop_factory=factory()) as runner:
        seen = runner.run(load(way.port, path, STREAMS, seconds, warm_s=WARM_S, mark=mark))
    if seen.failed:
        raise SystemExit(f"{way.name}: {seen.failed} answers failed")
    cpu_us = (way.cpu_s() - before_s) * 1e6
    first_ms = sorted(second * 1e3 for second in seen.first_s) or [0.0]
    return {
        "eventMicroseconds": cpu_us / max(seen.events, 1),
        "answerMicroseconds": cpu_us / max(seen.answers, 1),
        "perSecond": max(seen.events, seen.answers) / seconds,
        "p50Milliseconds": statistics.median(first_ms),
        "p99Milliseconds": first_ms[int(len(first_ms) * 0.99)],
    }


def medians(ways: list[Way], path: str, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Every way in turn, so often; the medians of each figure."""
    runs: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            runs[way.name].append(measured(way, path, seconds))
    return {
        name: {figure: statistics.median(run[figure] for run in taken) for figure in taken[0]}
        for name, taken in runs.items()
    }


async def fill(port: int) -> list[asyncio.Transport]:
    """Put the requests into the queue, on a connection each."""
    loop = asyncio.get_running_loop()
    message = request("/v1/embeddings", b"x" * QUEUED_BYTES)
    held: list[asyncio.Transport] = []
    for _ in range(QUEUED):
        transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
        transport.write(message)
        held.append(transport)
    return held


def memory() -> dict[str, float]:
    """Resident megabytes of the sidecar, empty and full."""
    with upstream() as engine, sidecar(engine.port, "queue") as way, asyncio.Runner(loop_factory=factory()) as runner:
        empty = way.resident_bytes()
        held = runner.run(fill(way.port))
        deadline_s = time.monotonic() + 60
        while way.figure("uellm_requests_queued") < QUEUED - 1:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"only {way.figure('uellm_requests_queued')} requests are in the queue")
            time.sleep(0.1)
        full = way.resident_bytes()
        for transport in held:
            transport.abort()
    return {"emptyMegabytes": round(empty / 1e6, 1), "fullMegabytes": round(full / 1e6, 1)}


def results(seconds: float, rounds: int) -> dict[str, Any]:
    """All the figures."""
    with ExitStack() as stack:
        straight = stack.enter_context(upstream())
        baseline = stack.enter_context(nginx(straight.port))
        ours = stack.enter_context(sidecar(straight.port))
        if baseline is None:
            print(NO_NGINX, file=sys.stderr)
        proxies = [way for way in (baseline, ours) if way is not None]
        events = medians(proxies, STREAM, seconds, rounds)
        recorded = {name: medians(proxies, path, seconds, rounds) for name, path in PLAYED.items()}
        first = medians([straight, *proxies], ENDING_STREAM, seconds, rounds)
        short = medians([straight, *proxies], COMPLETION, seconds, rounds)
    return {"events": events, "recorded": recorded, "firstByte": first, "short": short, "memory": memory()}


def table(found: dict[str, Any]) -> None:
    """Print them."""
    print(f"{'':<12}{'way':<10}{'CPU us':>9}{'beside nginx':>14}{'per s':>9}{'p50 ms':>9}{'p99 ms':>9}{'added':>15}")
    for case, figure in (("events", "eventMicroseconds"), ("firstByte", ""), ("short", "answerMicroseconds")):
        ways = found[case]
        for name, row in ways.items():
            proxied = figure and name != "straight"
            cpu = f"{row[figure]:.1f}" if proxied else ""
            ratio = f"{row[figure] / ways['nginx'][figure]:.2f}x" if proxied and "nginx" in ways else ""
            added = ""
            if "straight" in ways and name != "straight":
                p50, p99 = (row[key] - ways["straight"][key] for key in ("p50Milliseconds", "p99Milliseconds"))
                added = f"{p50:+.2f} / {p99:+.2f}"
            times = f"{row['p50Milliseconds']:>9.2f}{row['p99Milliseconds']:>9.2f}" if case != "events" else " " * 18
            print(f"{case:<12}{name:<10}{cpu:>9}{ratio:>14}{row['perSecond']:>9.0f}{times}{added:>15}")
    for route, ways in found["recorded"].items():
        for name, row in ways.items():
            ratio = f"{row['eventMicroseconds'] / ways['nginx']['eventMicroseconds']:.2f}x" if "nginx" in ways else ""
            print(f"event of {route:<24}{name:<10}{row['eventMicroseconds']:>9.1f}{ratio:>14}")
    for name, row in found["short"].items():
        if name != "straight":
            print(f"short answers a second that one core can do, {name}: {1e6 / row['answerMicroseconds']:.0f}")
    print(
        "{:,} queued requests of {} KiB: {fullMegabytes} MB (empty {emptyMegabytes} MB)".format(
            QUEUED, QUEUED_BYTES // 1024, **found["memory"]
        )
    )


if __name__ == "__main__":
    sys.exit(command.run("sidecar_proxy", __doc__, results, table))
