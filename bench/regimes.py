"""Load patterns that need no ordering, in front of real vLLM: the sidecar beside the bare engine and nginx.

    python bench/regimes.py [--seconds 30] [--rounds 3] [--only REGIME ...] [--json FILE]

One vLLM engine on the CPU (a small model with random weights), one sidecar and one nginx run the whole time, so the
sidecar carries what it learns in one regime into the next. In every round each regime is measured through each of the
three paths in turn. A ratio compares two runs of the same round; the table shows the median over the rounds. Clients
are closed-loop: each sends its next request as soon as it has its answer.

    one, eight, many  1, 8 or 48 clients, prompts of 126 tokens
    quiet, burst      one client for half of the time, then 144 requests by 48 clients; only the burst is measured
    ramp              the number of clients grows steadily from 1 to 48
    on, off           two seconds with 48 clients, two seconds with none
    long after short  8 clients, prompts of 20 tokens, then of 700
    mixed             16 clients, prompts of 10 to 700 tokens, answers of 1 to 60
    whole             48 clients, prompts of 126 tokens, answers of 32 that come whole and of which nothing is seen
                      before (`echo`, which the sidecar passes on as it is); TTFT is the time of the whole answer

The class has TTFT and TPOT targets that no path comes near, so the sidecar's guards are active but nothing needs
ordering. Engine, proxies and clients share the machine, so the table also shows the CPU seconds of nginx and the
sidecar. Exits with 1 where the sidecar is below 0.95 of the bare engine's requests a second, or above 1.5 times its
TTFT p99. nginx is optional (Debian: apt-get install nginx-light).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from sidecar_load.vllm import engine_and_sidecar
from sidecar_load.ways import NO_NGINX, Way, nginx

from uellm.evaluate.measure import percentile
from uellm.text import aligned

CHUNK, SEQUENCES = 512, 64
MANY, BURST = 48, 144
LEAST_THROUGHPUT, MOST_TTFT = 0.95, 1.5
CONFIG = {
    "model": "tiny",
    "classes": [{"name": "chat", "ttft": "30s", "tpot": "1s"}],
    "engine": {"maxNumSeqs": SEQUENCES, "maxNumBatchedTokens": CHUNK},
}
Lengths = Callable[[random.Random], tuple[int, int]]


def short(draw: random.Random) -> tuple[int, int]:
    return 126, 16


def longer_answers(draw: random.Random) -> tuple[int, int]:
    return 126, 32


def shorter(draw: random.Random) -> tuple[int, int]:
    return 20, 16


def long(draw: random.Random) -> tuple[int, int]:
    return 700, 16


def mixed(draw: random.Random) -> tuple[int, int]:
    return round(10 * 70 ** draw.random()), draw.randint(1, 60)


@dataclass
class Clients:
    """Clients of one path; `forget` restarts the measurement."""

    session: aiohttp.ClientSession
    url: str
    draw: random.Random
    first_s: list[float] = field(default_factory=list)
    failed: int = 0
    began_s: float = 0.0

    def forget(self) -> None:
        self.first_s, self.failed, self.began_s = [], 0, self.now_s()

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def ask(self, lengths: Lengths, *, whole: bool = False) -> None:
        prompt, output = lengths(self.draw)
        body = {
            "model": "tiny",
            "prompt": self.draw.choices(range(10, 250), k=prompt),
            "max_tokens": output,
            "ignore_eos": True,
            "temperature": 0,
            "stream": not whole,
            "echo": whole,
        }
        sent_s, first = self.now_s(), True
        async with self.session.post(f"{self.url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                self.failed += 1
                return
            async for line in answer.content:
                if first and (whole or line.startswith(b"data:")):
                    self.first_s.append(self.now_s() - sent_s)
                    first = False

    async def until(self, end_s: float, lengths: Lengths, *, whole: bool = False) -> None:
        """One closed-loop client."""
        while self.now_s() < end_s:
            await self.ask(lengths, whole=whole)

    async def many(self, count: int, seconds: float, lengths: Lengths, *, whole: bool = False) -> None:
        end_s = self.now_s() + seconds
        await asyncio.gather(*(self.until(end_s, lengths, whole=whole) for _ in range(count)))


async def quiet_then_burst(clients: Clients, seconds: float) -> None:
    await clients.many(1, seconds / 2, short)
    clients.forget()
    left = iter(range(BURST))

    async def client() -> None:
        for _ in left:
            await clients.ask(short)

    await asyncio.gather(*(client() for _ in range(MANY)))


async def ramp(clients: Clients, seconds: float) -> None:
    end_s = clients.now_s() + seconds

    async def later(number: int) -> None:
        await asyncio.sleep(seconds * number / MANY)
        await clients.until(end_s, short)

    await asyncio.gather(*(later(number) for number in range(MANY)))


async def on_and_off(clients: Clients, seconds: float) -> None:
    end_s = clients.now_s() + seconds
    while clients.now_s() < end_s:
        await clients.many(MANY, 2.0, short)
        await asyncio.sleep(2.0)


async def long_after_short(clients: Clients, seconds: float) -> None:
    await clients.many(8, seconds / 2, shorter)
    await clients.many(8, seconds / 2, long)


def steady(count: int, lengths: Lengths, *, whole: bool = False) -> Callable[[Clients, float], Awaitable[None]]:
    return lambda clients, seconds: clients.many(count, seconds, lengths, whole=whole)


REGIMES: dict[str, Callable[[Clients, float], Awaitable[None]]] = {
    "one": steady(1, short),
    "quiet, burst": quiet_then_burst,
    "eight": steady(8, short),
    "ramp": ramp,
    "many": steady(MANY, short),
    "on, off": on_and_off,
    "long after short": long_after_short,
    "mixed": steady(16, mixed),
    "whole": steady(MANY, longer_answers, whole=True),
}


async def measured(way: Way, name: str, seconds: float, seed: int) -> dict[str, Any]:
    """One run: requests a second, seconds to the first token, and CPU seconds of the path's process."""
    limits = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=limits, timeout=aiohttp.ClientTimeout(total=600)) as session:
        clients = Clients(session, f"http://127.0.0.1:{way.port}", random.Random(seed))
        clients.forget()
        cpu_s = way.cpu_s()
        await REGIMES[name](clients, seconds)
        took_s, ordered = clients.now_s() - clients.began_s, sorted(clients.first_s)
    return {
        "way": way.name,
        "regime": name,
        "requestsPerSecond": len(ordered) / took_s,
        "ttftP50Seconds": percentile(ordered, 0.5),
        "ttftP99Seconds": percentile(ordered, 0.99),
        "cpuSeconds": way.cpu_s() - cpu_s,
        "failed": clients.failed,
    }


def rounds(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every regime through every path in turn."""
    found = []
    with ExitStack() as stack:
        at = stack.enter_context(engine_and_sidecar(CONFIG, chunk=CHUNK, sequences=SEQUENCES))
        plain = stack.enter_context(nginx(at.engine_port))
        if plain is None:
            print(NO_NGINX, file=sys.stderr)
        bare, ours = Way("bare", at.engine_port, at.engine_pid), Way("sidecar", at.sidecar_port, at.sidecar_pid)
        ways = [bare, *([plain] if plain else []), ours]
        for way in ways:
            asyncio.run(measured(way, "mixed", 3.0, seed=0))
        for turn in range(args.rounds):
            for name in args.only or REGIMES:
                for way in ways:
                    found.append({"round": turn, **asyncio.run(measured(way, name, args.seconds, seed=turn))})
                    print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def compared(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each regime and path: medians, and medians of the ratios to the bare engine."""
    bare = {(run["round"], run["regime"]): run for run in found if run["way"] == "bare"}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in found:
        groups.setdefault((run["regime"], run["way"]), []).append(run)
    rows = []
    for (regime, way), runs in groups.items():
        row: dict[str, Any] = {"regime": regime, "way": way}
        for figure in ("requestsPerSecond", "ttftP50Seconds", "ttftP99Seconds", "cpuSeconds", "failed"):
            row[figure] = median(run[figure] for run in runs)
        for ratio, figure in (("throughput", "requestsPerSecond"), ("ttft", "ttftP99Seconds")):
            row[ratio] = median(run[figure] / bare[run["round"], regime][figure] for run in runs)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [["REGIME", "WAY", "REQUESTS/S", "OF BARE", "TTFT p50", "TTFT p99", "OF BARE", "CPU s"]]
    for row in rows:
        times = [f"{1e3 * row[figure]:.0f} ms" for figure in ("ttftP50Seconds", "ttftP99Seconds")]
        cpu = "" if row["way"] == "bare" else f"{row['cpuSeconds']:.2f}"
        rate = [f"{row['requestsPerSecond']:.1f}", f"{row['throughput']:.3f}"]
        lines.append([row["regime"], row["way"], *rate, *times, f"{row['ttft']:.2f}", cpu])
    return "\n".join(aligned(lines))


def main() -> int:
    """Measure, print, write. Returns 1 where the sidecar misses a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=REGIMES, metavar="REGIME")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = rounds(args)
    rows = compared(found)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"benchmark": "regimes", "rows": rows, "runs": found}, indent=1))
    bad = [
        row["regime"]
        for row in rows
        if row["way"] == "sidecar"
        and (row["throughput"] < LEAST_THROUGHPUT or row["ttft"] > MOST_TTFT or row["failed"])
    ]
    if bad:
        print(f"the sidecar costs more than {LEAST_THROUGHPUT} and {MOST_TTFT} allow: {', '.join(bad)}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
