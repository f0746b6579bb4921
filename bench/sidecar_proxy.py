"""What the sidecar's proxy costs, beside nginx with `proxy_buffering off`: same load, same upstream, in turn.

    python bench/sidecar_proxy.py [--json FILE] [--seconds 5] [--rounds 3]

    event of ROUTE    256 streams without end, as real vLLM sent them on that route, an event each 50 ms on each:
                      CPU time of the proxy's process for one event
    stream of N       32 clients, one streamed chat of N events after the other, an event each 10 ms: CPU time for one
    whole answer of N the same chats; the sidecar's clients ask for whole answers, which the sidecar asks for as
                      streams, most of them in batches of eight tokens, and puts together. nginx relays streams of N
    short             256 clients, one short answer after the other: CPU time for one. nginx relays whole answers here,
                      the sidecar streams of one event
    first byte        256 streams of 20 to 60 events, one after the other: time to the first byte of the body
    100 at once       100 of these streams begin in the same moment, on connections that are open or new: the same
    memory            10,000 requests of 32 KiB in the sidecar's queue: resident bytes

LEAST is a relay in Python that only reads a request and passes both on (sidecar_load/least.py): what the sidecar costs
beyond it is spent on what it is for. The TARGET of a CPU time is a multiple of nginx's, that of a time to the first
byte is milliseconds on top of the p99 of the straight way. The sidecar's gate is open, for how long a request waits for
its turn is the scheduler's matter; all else is as `uellm sidecar` runs it. Ways take turns; a figure is the median over
the rounds, a ratio or a difference the median of those within each round. CPU time is the kernel's for the proxy's
process alone, so neither the load generator nor the upstream is in it; times to the first byte are wall clock. Both
hold on a quiet machine only: beside other load caches are cold and processes wait. nginx comes from Debian: apt-get
install nginx-light. Where it is missing, the rest is measured without it.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sidecar_load import command
from sidecar_load.client import Seen, burst, load, request
from sidecar_load.upstream import COMPLETION, ENDING_STREAM, PLAYED
from sidecar_load.ways import NO_NGINX, Way, least, nginx, sidecar, upstream

from uellm.http.loop import factory
from uellm.text import aligned

STREAMS, CLIENTS = 256, 32
AT_ONCE, BURSTS = 100, 3
WARM_S, SPREAD_S = 1.0, 4.0
"""Streams that began together have lengths of their own: after `SPREAD_S` they begin and end at different moments."""
QUEUED, QUEUED_BYTES = 10_000, 32 * 1024
EVENT, ANSWER, FIRST, LAST = "eventMicroseconds", "answerMicroseconds", "p50Milliseconds", "p99Milliseconds"


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    figure: str
    """What the target is for."""
    target: float | None
    measure: Callable[[Way, float], dict[str, float]]


def loaded(path: str, connections: int, *, whole: bool = False) -> Callable[[Way, float], dict[str, float]]:
    """Clients that ask again and again. `whole`: the sidecar's ask for whole answers."""

    warm_s = SPREAD_S if path == ENDING_STREAM else WARM_S

    def measure(way: Way, seconds: float) -> dict[str, float]:
        before_s = 0.0

        def mark() -> None:
            nonlocal before_s
            before_s = way.cpu_s()

        with asyncio.Runner(loop_factory=factory()) as runner:
            asked_whole = whole and way.name == "sidecar"
            seen = runner.run(load(way.port, path, connections, seconds, warm_s=warm_s, mark=mark, whole=asked_whole))
        return figures(way, seen, way.cpu_s() - before_s, seconds)

    return measure


def at_once(*, fresh: bool) -> Callable[[Way, float], dict[str, float]]:
    """Bursts of requests."""

    def measure(way: Way, seconds: float) -> dict[str, float]:
        with asyncio.Runner(loop_factory=factory()) as runner:
            before_s, began_s = way.cpu_s(), time.monotonic()
            seen = runner.run(burst(way.port, ENDING_STREAM, AT_ONCE, BURSTS, fresh=fresh))
        return figures(way, seen, way.cpu_s() - before_s, time.monotonic() - began_s)

    return measure


CASES = (
    *(Case(f"event of {name}", EVENT, 1.5, loaded(path, STREAMS)) for name, path in PLAYED.items()),
    Case("stream of 4", ANSWER, 4.0, loaded("/v1/chat/completions?events=4", CLIENTS)),
    Case("stream of 64", ANSWER, 2.0, loaded("/v1/chat/completions?events=64", CLIENTS)),
    Case("whole answer of 4", ANSWER, 4.0, loaded("/v1/chat/completions?events=4", CLIENTS, whole=True)),
    Case("whole answer of 64", ANSWER, 2.0, loaded("/v1/chat/completions?events=64", CLIENTS, whole=True)),
    Case("short", ANSWER, None, loaded(COMPLETION, STREAMS)),
    Case("first byte", LAST, None, loaded(ENDING_STREAM, STREAMS)),
    Case("100 at once", LAST, 15.0, at_once(fresh=False)),
    Case("100 at once, new", LAST, 15.0, at_once(fresh=True)),
)


def figures(way: Way, seen: Seen, cpu_s: float, seconds: float) -> dict[str, float]:
    """One run: microseconds of CPU for an event and for an answer, milliseconds to the first byte."""
    if seen.failed:
        raise SystemExit(f"{way.name}: {seen.failed} answers failed")
    first_ms = sorted(second * 1e3 for second in seen.first_s) or [0.0]
    return {
        EVENT: cpu_s * 1e6 / max(seen.events, 1),
        ANSWER: cpu_s * 1e6 / max(seen.answers, 1),
        "perSecond": max(seen.events, seen.answers) / seconds,
        FIRST: statistics.median(first_ms),
        LAST: first_ms[int(len(first_ms) * 0.99)],
    }


def compared(case: Case, ways: list[Way], seconds: float, rounds: int) -> dict[str, Any]:
    """The ways in turn, so often: medians by way, and what the sidecar costs beside the reference of the target."""
    measured = ways if case.figure == LAST else ways[1:]
    runs = [{way.name: case.measure(way, seconds) for way in measured} for _ in range(rounds)]
    row: dict[str, Any] = {"case": case.name, "figure": case.figure, "target": case.target}
    for way in measured:
        row[way.name] = {each: statistics.median(run[way.name][each] for run in runs) for each in runs[0][way.name]}
    if case.figure == LAST:
        row["cost"] = statistics.median(run["sidecar"][LAST] - run["straight"][LAST] for run in runs)
    elif "nginx" in row:
        row["cost"] = statistics.median(run["sidecar"][case.figure] / run["nginx"][case.figure] for run in runs)
    return row


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
        python = stack.enter_context(least(straight.port))
        ours = stack.enter_context(sidecar(straight.port))
        if baseline is None:
            print(NO_NGINX, file=sys.stderr)
        ways = [way for way in (straight, baseline, python, ours) if way is not None]
        cases = [compared(case, ways, seconds, rounds) for case in CASES]
    return {"cases": cases, "memory": memory()}


def table(found: dict[str, Any]) -> None:
    """Print them."""
    lines = [["", "NGINX", "LEAST", "SIDECAR", "COST", "TARGET", "FIRST BYTE p50 / p99", "PER S"]]
    lines += [_line(row) for row in found["cases"]]
    print("\n".join(aligned(lines)))
    short = next(row["sidecar"][ANSWER] for row in found["cases"] if row["case"] == "short")
    print(f"short answers a second that one core can do: {1e6 / short:.0f}")
    print(
        "{:,} queued requests of {} KiB: {fullMegabytes} MB (empty {emptyMegabytes} MB)".format(
            QUEUED, QUEUED_BYTES // 1024, **found["memory"]
        )
    )


def _line(row: dict[str, Any]) -> list[str]:
    timed, ours = row["figure"] == LAST, row["sidecar"]
    unit = "ms" if timed else "us"
    values = [f"{row[way][row['figure']]:.1f} {unit}" if way in row else "" for way in ("nginx", "least", "sidecar")]
    form = "{:+.1f} ms" if timed else "{:.2f}x"
    cost, target = (form.format(row[name]) if row.get(name) is not None else "" for name in ("cost", "target"))
    first = f"{ours[FIRST]:.1f} / {ours[LAST]:.1f} ms" if timed or "whole" not in row["case"] else ""
    return [row["case"], *values, cost, target, first, f"{ours['perSecond']:.0f}"]


if __name__ == "__main__":
    sys.exit(command.run("sidecar_proxy", __doc__, results, table))
