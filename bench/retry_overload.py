"""Three times the capacity of a real vLLM, from the official client with its default retries.

    python bench/retry_overload.py [--json FILE] [--load 3] [--seconds 30] [--bounds 16 64]

The engine is vLLM on the CPU with a small model of random weights. Its capacity is measured first, without a sidecar,
with twice as many closed-loop callers as it has sequences. Then OpenAI's Python client, with its default retries and
delays, sends a multiple of that load through `uellm sidecar`, whose queue is bounded. An answer is useful where the
client received it whole.

Engine and clients share the machine, and a call costs the official client as much CPU time as many tokens cost the
engine. So the capacity is measured again while the surplus of the calls goes to a server that only refuses them.
Target: at least 0.9 of these answers a second while calls arrive.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import openai
import yaml
from sidecar_load.vllm import PROGRAMS, engine_command, running
from sidecar_load.ways import Way, free_port

from uellm.text import aligned
from uellm_devcluster import tinymodel

SEQUENCES, CHUNK = 16, 512
PROMPT, TOKENS = "word " * 30, 48
WARM_S, BARE_S = 4.0, 15.0
GOAL = 0.9
REFUSER = Path(__file__).parent / "sidecar_load" / "refuser.py"


@dataclass
class Seen:
    """What the client of one run observed."""

    answered_s: list[float] = field(default_factory=list)
    """When each answer was whole, from the run's start."""
    failed: Counter[str] = field(default_factory=Counter)
    """Calls that the client gave up, by the status or the kind of the last try."""
    http_calls: int = 0
    cpu_s: float = 0.0


class Caller:
    """OpenAI's client; its HTTP calls are counted."""

    def __init__(self, url: str) -> None:
        self.seen = Seen()
        transport = openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._count]})
        self._client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", http_client=transport)
        self._start_s = time.perf_counter()

    async def _count(self, request: Any) -> None:
        self.seen.http_calls += 1

    async def ask(self) -> None:
        """One call, with all its retries."""
        try:
            await self._client.completions.create(
                model="tiny", prompt=PROMPT, max_tokens=TOKENS, extra_body={"ignore_eos": True}
            )
        except openai.APIStatusError as error:
            self.seen.failed[str(error.status_code)] += 1
        except openai.APIError as error:
            self.seen.failed[type(error).__name__] += 1
        else:
            self.seen.answered_s.append(time.perf_counter() - self._start_s)


async def bare(url: str, refuser: str, surplus_per_s: float, seed: int) -> float:
    """The bare engine's answers a second, with twice as many callers as it has sequences.

    Meanwhile a surplus of calls goes to the refuser.
    """
    surplus = overloaded(refuser, surplus_per_s, WARM_S + BARE_S, seed) if surplus_per_s else None
    refused = asyncio.create_task(surplus) if surplus else None
    answers_per_s = await _closed_loop(url)
    if refused:
        refused.cancel()
        await asyncio.gather(refused, return_exceptions=True)
    return answers_per_s


async def _closed_loop(url: str) -> float:
    caller, end_s = Caller(url), time.perf_counter() + WARM_S + BARE_S

    async def on_and_on() -> None:
        while time.perf_counter() < end_s:
            await caller.ask()

    await asyncio.gather(*(on_and_on() for _ in range(2 * SEQUENCES)))
    ends = [at_s for at_s in caller.seen.answered_s if WARM_S <= at_s <= WARM_S + BARE_S]
    return len(ends) / BARE_S


async def overloaded(url: str, rate: float, seconds: float, seed: int) -> Seen:
    """Poisson arrivals at `rate` calls a second for `seconds`; returns when every call has ended."""
    generator, caller = random.Random(seed), Caller(url)
    tasks, start_s, at_s = [], time.perf_counter(), 0.0
    cpu_s = time.process_time()
    while (at_s := at_s + generator.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, start_s + at_s - time.perf_counter()))
        tasks.append(asyncio.create_task(caller.ask()))
    await asyncio.gather(*tasks)
    caller.seen.cpu_s = time.process_time() - cpu_s
    return caller.seen


def outcomes(metrics: str) -> dict[str, int]:
    """The sidecar's own counts, by outcome."""
    with urllib.request.urlopen(f"{metrics}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        if line.startswith("uellm_requests_total{") and 'route="/v1/completions"' in line:
            found[line.partition('outcome="')[2].partition('"')[0]] += int(float(line.rpartition(" ")[2]))
    return dict(found)


class Capacity(NamedTuple):
    """The bare engine's answers a second: alone, and while the surplus of the calls is refused elsewhere."""

    alone: float
    beside_clients: float


def capacities(engine: str, load: float, seed: int, scratch: Path) -> Capacity:
    """Measure both."""
    port = free_port()
    refuser = f"http://127.0.0.1:{port}"
    alone = asyncio.run(bare(engine, refuser, 0.0, seed))
    print(f"the bare engine: {alone:.1f} answers/s", file=sys.stderr, flush=True)
    with running([sys.executable, REFUSER, port], refuser, scratch / "refuser.log"):
        beside = asyncio.run(bare(engine, refuser, (load - 1) * alone, seed))
    print(f"beside clients that are refused: {beside:.1f} answers/s", file=sys.stderr, flush=True)
    return Capacity(alone, beside)


def through(engine: str, capacity: Capacity, bound: int, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One sidecar with this queue bound, under the load."""
    listen = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    config = scratch / f"sidecar-{bound}.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "model": "tiny",
                "classes": [{"name": "chat", "ttft": "120s"}],
                "scheduling": {"maxQueuedRequests": bound},
                "engine": {"maxNumSeqs": SEQUENCES, "maxNumBatchedTokens": CHUNK},
            }
        )
    )
    front = [PROGRAMS / "uellm", "sidecar", "--listen", listen[0], "--metrics-listen", listen[1]]
    front += ["--engine", engine, "--config", config]
    metrics = f"http://{listen[1]}"
    with running(front, f"{metrics}/readyz", scratch / f"sidecar-{bound}.log") as pid:
        sidecar = Way("sidecar", 0, pid)
        seen = asyncio.run(overloaded(f"http://{listen[0]}", args.load * capacity.alone, args.seconds, args.seed))
        sidecar_cpu_s, counted = sidecar.cpu_s(), outcomes(metrics)
    # The first answers arrive one request's time after the first calls; the bare engine's warm-up excludes them, too.
    useful = sum(WARM_S <= at_s <= args.seconds for at_s in seen.answered_s) / (args.seconds - WARM_S)
    print(f"queue of {bound}: {useful:.1f} useful answers/s", file=sys.stderr, flush=True)
    return {
        "bound": bound,
        "capacityPerSecond": capacity.alone,
        "capacityBesideClientsPerSecond": capacity.beside_clients,
        "usefulPerSecond": useful,
        "usefulShare": useful / capacity.beside_clients,
        "calls": len(seen.answered_s) + seen.failed.total(),
        "answered": len(seen.answered_s),
        "failed": dict(seen.failed),
        "httpCalls": seen.http_calls,
        "lastAnswerSeconds": max(seen.answered_s, default=None),
        "clientCpuSeconds": seen.cpu_s,
        "sidecarCpuSeconds": sidecar_cpu_s,
        "outcomes": counted,
    }


def report(results: list[dict[str, Any]]) -> None:
    rows = [
        [
            "QUEUE",
            "BARE/s",
            "BESIDE CLIENTS/s",
            "USEFUL/s",
            "SHARE",
            "CALLS",
            "ANSWERED",
            "FAILED",
            "HTTP CALLS",
            "LAST ANSWER",
            "SIDECAR'S CPU",
        ]
    ]
    for result in results:
        last = result["lastAnswerSeconds"]
        rows.append(
            [
                str(result["bound"]),
                f"{result['capacityPerSecond']:.1f}",
                f"{result['capacityBesideClientsPerSecond']:.1f}",
                f"{result['usefulPerSecond']:.1f}",
                f"{result['usefulShare']:.2f}",
                *(str(result[name]) for name in ("calls", "answered")),
                " ".join(f"{number} x {why}" for why, number in result["failed"].items()) or "0",
                str(result["httpCalls"]),
                "-" if last is None else f"{last:.0f} s",
                f"{result['sidecarCpuSeconds']:.1f} s",
            ]
        )
    print("\n".join(aligned(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--load", type=float, default=3.0, help="as a multiple of what the engine bears")
    parser.add_argument("--seconds", type=float, default=30.0, help="of arrivals")
    parser.add_argument("--bounds", nargs="+", type=int, default=[16, 64], help="of the queue, in requests")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        tinymodel.make(scratch / "model")
        port = free_port()
        engine = f"http://127.0.0.1:{port}"
        with running(
            engine_command(scratch / "model", port, chunk=CHUNK, sequences=SEQUENCES),
            f"{engine}/health",
            scratch / "engine.log",
        ):
            capacity = capacities(engine, args.load, args.seed, scratch)
            results = [through(engine, capacity, bound, scratch, args) for bound in args.bounds]
    report(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    if any(result["usefulShare"] < GOAL for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
