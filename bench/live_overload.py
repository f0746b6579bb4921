"""Twice the capacity of a real vLLM, two classes: the bare engine, the engine's priorities, and the sidecar.

    python bench/live_overload.py [--json FILE] [--chunks 64 512] [--seconds 40] [--load 2]

For each chunk size there is one vLLM engine on the CPU with a small model of random weights. Its capacity is measured
first, with requests of the same lengths and as many at a time as the engine accepts. The targets follow from the
capacity, so that they mean the same on every machine: a strict class (60 % of the load, more than the engine's whole
capacity) with a TTFT of 25 and a TPOT of 3 saturated steps, and a patient class whose end-to-end target is the length
of the run. Then the same arrivals are sent to each variant in turn: the plain engine; the engine with deadlines as
vLLM's own `priority`; the engine behind `uellm sidecar`. Prompts are token ids. `max_tokens` sets the answer's length,
and the sidecar sees it as any client's limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from sidecar_load.vllm import engine_command, running, sidecar_command
from sidecar_load.ways import free_port

from uellm.evaluate.live import Endpoint, LiveOptions, replay_live
from uellm.evaluate.measure import measure
from uellm.evaluate.scenario import Classes, Job, RequestClass, draw_jobs
from uellm.evaluate.traces import Trace, TraceRequest
from uellm.sidecar.scheduling import Targets
from uellm.text import aligned
from uellm_devcluster import tinymodel

SEQUENCES = 16
STRICT_SHARE = 0.6
TTFT_STEPS, TPOT_STEPS = 25, 3


def requests(count: int, gap_s: float, seed: int) -> tuple[TraceRequest, ...]:
    """Poisson arrivals; lognormal lengths with means of some 120 and 45 tokens."""
    generator = random.Random(seed)
    arrival_s, some = 0.0, []
    for _ in range(count):
        arrival_s += generator.expovariate(1 / gap_s)
        prompt, output = generator.lognormvariate(4.6, 0.6), generator.lognormvariate(3.6, 0.6)
        some.append(TraceRequest(arrival_s, min(600, max(4, round(prompt))), min(250, max(4, round(output)))))
    return tuple(some)


def drawn(some: tuple[TraceRequest, ...], classes: list[tuple[Targets, float]], seed: int) -> list[Job]:
    of = Classes(tuple(RequestClass(targets, share) for targets, share in classes), 0.7)
    return draw_jobs(Trace("poisson", some), of, seed=seed, limit=None, max_tokens=1024)


async def capacity(endpoint: Endpoint) -> tuple[float, float]:
    """The engine's capacity in requests a second, and the seconds of a step at that load. The engine is never idle."""
    jobs = drawn(requests(8 * SEQUENCES, 1e-3, seed=9), [(Targets("any"), 1.0)], seed=9)
    await replay_live(jobs[:SEQUENCES], endpoint, LiveOptions())
    outcome = await replay_live(jobs, endpoint, LiveOptions())
    ends = sorted(fate.end_s or 0.0 for fate in outcome.fates)
    middle = ends[SEQUENCES : -2 * SEQUENCES]
    figures = measure(jobs, outcome)
    return (len(middle) - 1) / (middle[-1] - middle[0]), figures["tpotSeconds"]["p50"]


async def compare(engine: str, sidecar: str, jobs: list[Job], chunk: int, rounds: int) -> list[dict[str, Any]]:
    ways = [
        Endpoint("bare", engine, "tiny"),
        Endpoint("bare, priorities", engine, "tiny", priorities=True),
        Endpoint("sidecar", sidecar, "tiny"),
    ]
    results = []
    # The order is reversed every other time, so that a machine that becomes busier or quieter favours no variant.
    for way in [way for turn in range(rounds) for way in (ways if turn % 2 == 0 else ways[::-1])]:
        load = os.getloadavg()[0]
        outcome = await replay_live(jobs, way, LiveOptions(), lambda line: print(line, file=sys.stderr))
        results.append({"way": way.name, "chunk": chunk, "loadAverage": load, **measure(jobs, outcome)})
        print(f"{way.name}, chunk {chunk}: {results[-1]['attainment']}", file=sys.stderr, flush=True)
    return results


def at_chunk(model: Path, scratch: Path, chunk: int, args: argparse.Namespace) -> dict[str, Any]:
    ports = [free_port() for _ in range(3)]
    engine, sidecar, metrics = (f"http://127.0.0.1:{port}" for port in ports)
    with running(
        engine_command(model, ports[0], chunk=chunk, sequences=SEQUENCES), f"{engine}/health", scratch / "engine.log"
    ):
        rate, step_s = asyncio.run(capacity(Endpoint("bare", engine, "tiny")))
        targets = [
            (Targets("strict", ttft_s=TTFT_STEPS * step_s, tpot_s=TPOT_STEPS * step_s), STRICT_SHARE),
            (Targets("patient", e2e_s=args.seconds * args.load), 1 - STRICT_SHARE),
        ]
        count = round(args.seconds * rate * args.load)
        jobs = drawn(requests(count, 1 / (rate * args.load), args.seed), targets, args.seed)
        config = scratch / "sidecar.yaml"
        config.write_text(yaml.safe_dump(_config(targets, chunk)))
        front = sidecar_command(ports[1], ports[2], engine, config)
        with running(front, f"{metrics}/readyz", scratch / "sidecar.log"):
            results = asyncio.run(compare(engine, sidecar, jobs, chunk, args.rounds))
    return {"chunk": chunk, "requestsPerSecond": rate, "stepSeconds": step_s, "requests": count, "results": results}


def _config(targets: list[tuple[Targets, float]], chunk: int) -> dict[str, Any]:
    """The sidecar configuration that the operator would write for such an engine."""
    strict, patient = (target for target, _ in targets)
    return {
        "model": "tiny",
        "classes": [
            {"name": "strict", "ttft": _ms(strict.ttft_s), "tpot": _ms(strict.tpot_s)},
            {"name": "patient", "e2e": _ms(patient.e2e_s)},
        ],
        "engine": {"maxNumSeqs": SEQUENCES, "maxNumBatchedTokens": chunk, "acceptsPriority": True},
    }


def _ms(seconds: float | None) -> str:
    return f"{round((seconds or 0.0) * 1e3)}ms"


def report(runs: list[dict[str, Any]]) -> None:
    rows = [["CHUNK", "WAY", "STRICT", "PATIENT", "ALL", "TOKENS/S", "TTFT p50", "SHED", "LOAD AVG"]]
    for run in runs:
        for result in run["results"]:
            attained = result["attainment"]
            shares = [f"{attained.get(name, 0.0):.3f}" for name in ("strict", "patient", "all")]
            ttft = result["ttftSeconds"]["p50"]
            rest = [f"{result['outputTokensPerSecond']:.0f}", f"{ttft:.2f}s", str(result["shed"])]
            rest.append(f"{result['loadAverage']:.1f}")
            rows.append([str(run["chunk"]), result["way"], *shares, *rest])
    print("\n".join(aligned(rows)))
    means = _means([result for run in runs for result in run["results"]])
    best = max((mean for mean in means if mean["way"] != "sidecar"), key=lambda mean: mean["strict"])
    mine = max((mean for mean in means if mean["way"] == "sidecar"), key=lambda mean: mean["strict"])
    same = next(mean for mean in means if (mean["way"], mean["chunk"]) == ("bare", mine["chunk"]))
    ratio = mine["strict"] / max(best["strict"], 1e-9)
    tokens = mine["tokens"] / same["tokens"]
    name = f"{best['way']}, chunk {best['chunk']}"
    print(f"\nstrict class: {ratio:.2f} times the best bare engine ({name}); tokens/s {tokens:.3f} of FCFS")


def _means(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means of each variant at each chunk size over the rounds: attainment of the strict class, and tokens a second."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["way"], result["chunk"]), []).append(result)
    return [
        {
            "way": way,
            "chunk": chunk,
            "strict": fmean(result["attainment"]["strict"] for result in group),
            "tokens": fmean(result["outputTokensPerSecond"] for result in group),
        }
        for (way, chunk), group in groups.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chunks", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--seconds", type=float, default=40.0, help="of arrivals")
    parser.add_argument("--load", type=float, default=2.0, help="as a multiple of what the engine bears")
    parser.add_argument("--rounds", type=int, default=1, help="of every way; odd ones forwards, even ones backwards")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        tinymodel.make(scratch / "model")
        runs = [at_chunk(scratch / "model", scratch, chunk, args) for chunk in args.chunks]
    report(runs)
    if args.json:
        args.json.write_text(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
