"""Attainment of the sidecar's policy beside tuned baselines, over traces and loads, on vLLM's own scheduler.

    python bench/attainment.py [--data DIR] [--json FILE] [--plot FILE] [--budget-minutes 10] [--quick]
                               [--traces NAME ...] [--speeds X ...] [--seeds S ...] [--chunks N ...] [--only PART]

    baselines   FCFS, EDF and SJF in the engine itself and llm-d's rule, each at 512, 1,024, 2,048 and 8,192 batched
                tokens: what counts is the best of the sixteen
    ours        SLO-ODBS at the chunk that the planner chooses (auto), and at 8,192
    reference   x3.2 of the first trace, 3,000 and 12,000 requests: what was published of FCFS and EDF on the same
                scheduler, and ours beside it
    sturdy      the same at x3.2 with worse predictions (sigma 1.5), an engine model 50 % off, a slow way to the engine

Every replay is kept under build/bench/attainment, so that a second call goes on where the first ended; replays of
the sidecar's policies are made anew when its scheduler has changed. What was not yet run shows as `-`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

import uellm.sidecar.scheduling as core
from uellm.evaluate.chunk import chunk_for
from uellm.evaluate.policies import find_policy, policy_names
from uellm.evaluate.queue import Cell, Scenario, describe, replay
from uellm.evaluate.scenario import read_classes
from uellm.evaluate.table import aligned
from uellm.evaluate.traces import read_trace
from uellm.planner.steptime import EngineFile

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build/bench/attainment"
TRACES = {
    "azure2023_conv": "csv.gz",
    "servegen_m-mid_1h_10rps": "csv.gz",
    "mooncake_fast25_synthetic_trace": "jsonl.gz",
    "vtc_arena_real_multitenant": "csv.gz",
    "servegen_deepseek-r1_1h_10rps": "csv.gz",
}
SPEEDS, SEEDS, CHUNKS = (3.2, 2.0, 1.0, 4.0, 2.6, 1.5, 0.5), (1, 2, 3, 4, 5), (512, 8192, 1024, 2048)
PUBLISHED = {
    ("engine-FCFS", 3000, 8192): 0.327,
    ("engine-FCFS", 3000, 512): 0.389,
    ("engine-FCFS", 12_000, 8192): 0.159,
    ("engine-FCFS", 12_000, 512): 0.185,
    ("engine-EDF", 3000, 8192): 0.345,
    ("engine-EDF", 3000, 512): 0.808,
    ("engine-EDF", 12_000, 8192): 0.089,
    ("engine-EDF", 12_000, 512): 0.189,
    ("SLO-ODBS", 3000, 8192): 0.811,
    ("SLO-ODBS", 3000, 512): 0.856,
    ("SLO-ODBS", 12_000, 8192): 0.776,
    ("SLO-ODBS", 12_000, 512): 0.817,
}
"""Attainment on azure2023_conv x3.2, seed 1; that of SLO-ODBS of a rough policy of the same kind."""
BASELINES = ("engine-FCFS", "engine-EDF", "engine-SJF", "llm-d")
OURS = "SLO-ODBS"
STURDY: dict[str, dict[str, float]] = {
    "sigma 0": {"sigma": 0.0},
    "sigma 1.5": {"sigma": 1.5},
    "engine 50 % fast": {"engine_error": 0.5},
    "engine 50 % slow": {"engine_error": 1.5},
    "10 ms to engine": {"reaction_s": 0.01},
}


@dataclass(frozen=True)
class Run:
    """One replay: what it is called, and how it is made."""

    trace: str
    limit: int
    policy: str
    chunk: int
    speed: float
    seed: int
    sturdy: str = ""

    @property
    def path(self) -> Path:
        version = "" if self.policy in BASELINES else f"-{_core_version()}"
        extra = f"-{self.sturdy.replace(' ', '_')}" if self.sturdy else ""
        name = f"{self.trace}-{self.limit}-{self.policy}-{self.chunk}-x{self.speed:g}-s{self.seed}{extra}{version}.json"
        return KEPT / name

    @property
    def result(self) -> dict[str, Any] | None:
        return json.loads(self.path.read_text()) if self.path.exists() else None


@cache
def _core_version() -> str:
    sources = sorted(Path(core.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:10]


class Bench:
    def __init__(self, data: Path, limit: int, chunks: list[int]) -> None:
        self.data, self.limit, self.chunks = data, limit, chunks
        self.engine = EngineFile.read(data / "scenarios/engine-8b-h100.json")
        classes = yaml.safe_load((data / "scenarios/classes-mixed.yaml").read_text())
        self.classes = read_classes(classes, "classes-mixed.yaml")
        self._scenarios: dict[str, Scenario] = {}

    def scenario(self, trace: str) -> Scenario:
        if trace not in self._scenarios:
            path = self.data / f"traces/{trace}.{TRACES[trace]}"
            self._scenarios[trace] = Scenario(read_trace(path), self.classes, self.engine, limit=self.limit)
        return self._scenarios[trace]

    def reference(self) -> list[Run]:
        return [Run("azure2023_conv", limit, policy, chunk, 3.2, 1) for policy, limit, chunk in PUBLISHED]

    def ours(self, trace: str, speed: float, seed: int, chunk: int | None = None, sturdy: str = "") -> Run:
        tokens = chunk or chunk_for(self.scenario(trace)).tokens
        return Run(trace, self.limit, OURS, tokens, speed, seed, sturdy)

    def baselines(self, trace: str, speed: float, seed: int) -> list[Run]:
        return [Run(trace, self.limit, policy, chunk, speed, seed) for chunk in self.chunks for policy in BASELINES]

    def make(self, run: Run, seeds: tuple[int, ...]) -> None:
        changes = dict(STURDY.get(run.sturdy, {}))
        scenario = replace(self.scenario(run.trace), limit=run.limit)
        if "sigma" in changes:
            scenario = replace(scenario, classes=replace(scenario.classes, sigma=changes.pop("sigma")))
        scenario = replace(scenario, **changes)  # type: ignore[arg-type]
        cell = Cell(find_policy(run.policy), run.speed, run.seed, run.chunk)
        outcome = replay(scenario, cell, scenario.jobs(run.seed))
        # The engine's own FCFS knows no classes: one replay holds for every seed.
        for seed in seeds if run.policy == "engine-FCFS" else (run.seed,):
            result = describe(replace(cell, seed=seed), scenario.jobs(seed), outcome)
            path = replace(run, seed=seed).path
            path.with_suffix(".part").write_text(json.dumps(result))
            path.with_suffix(".part").rename(path)


def plan(bench: Bench, args: argparse.Namespace) -> Iterator[Run]:
    """Every replay that is wanted, the telling ones first."""
    if args.only == "reference":
        yield from bench.reference()
    for seed in args.seeds:
        for trace in args.traces:
            for speed in args.speeds:
                if args.only in (None, "ours"):
                    yield bench.ours(trace, speed, seed)
                    yield bench.ours(trace, speed, seed, 8192)
                if args.only in (None, "baselines"):
                    yield from bench.baselines(trace, speed, seed)
        if args.only in (None, "sturdy"):
            for name in STURDY:
                yield bench.ours(args.traces[0], 3.2, seed, sturdy=name)


def mean(runs: list[Run], *keys: str) -> float | None:
    """The mean over the seeds that were run; None where none was."""
    values = []
    for run in runs:
        value: Any = run.result
        if value is not None:
            for key in keys:
                value = value[key]
            values.append(value)
    return fmean(values) if values else None


def compare(bench: Bench, trace: str, speed: float, seeds: tuple[int, ...]) -> dict[str, Any]:
    """One line of the table: the best baseline, FCFS at the engine's default chunk, and ours."""
    by_name: dict[tuple[str, int], list[Run]] = {}
    for seed in seeds:
        for run in bench.baselines(trace, speed, seed):
            by_name.setdefault((run.policy, run.chunk), []).append(run)
    found = {name: share for name, runs in by_name.items() if (share := mean(runs, "attainment", "all")) is not None}
    best = max(found, key=lambda name: found[name], default=None)
    ours = [bench.ours(trace, speed, seed) for seed in seeds]
    return {
        "trace": trace,
        "speed": speed,
        "fcfs": found.get(("engine-FCFS", 8192)),
        "best": found[best] if best else None,
        "bestName": f"{best[0]} {best[1]}" if best else None,
        "baselinesRun": len(found),
        "chunk": ours[0].chunk,
        "ours": mean(ours, "attainment", "all"),
        "oursAt8192": mean([bench.ours(trace, speed, seed, 8192) for seed in seeds], "attainment", "all"),
        "tokensOfFcfs": _ratio(mean(ours, "outputTokensPerSecond"), _fcfs_tokens(by_name, ours[0].chunk)),
        "shed": mean(ours, "shed"),
        "seeds": sum(run.result is not None for run in ours),
    }


def _fcfs_tokens(by_name: dict[tuple[str, int], list[Run]], chunk: int) -> float | None:
    return mean(by_name.get(("engine-FCFS", chunk), []), "outputTokensPerSecond")


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.4f}"
        if isinstance(value, float) and value < 50
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def report(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    lines = [compare(bench, trace, speed, args.seeds) for trace in args.traces for speed in sorted(args.speeds)]
    lines = [line for line in lines if line["baselinesRun"] or line["seeds"]]
    sturdy = [
        {
            "case": name or "as is",
            "attainment": mean(
                [bench.ours(args.traces[0], 3.2, seed, sturdy=name) for seed in args.seeds], "attainment", "all"
            ),
        }
        for name in ("", *STURDY)
    ]
    head = [
        "TRACE",
        "LOAD",
        "FCFS 8192",
        "BEST BASELINE",
        "WHICH",
        "RUN",
        "OURS",
        "CHUNK",
        "OURS 8192",
        "TOKENS/FCFS",
        "SHED",
        "SEEDS",
    ]
    keys = (
        "trace",
        "speed",
        "fcfs",
        "best",
        "bestName",
        "baselinesRun",
        "ours",
        "chunk",
        "oursAt8192",
        "tokensOfFcfs",
        "shed",
        "seeds",
    )
    print("\n".join(aligned([head, *([_cell(line[key]) for key in keys] for line in lines)])))
    print(
        "\n".join(
            ["", *aligned([["CASE", "ATTAINED"], *([case["case"], _cell(case["attainment"])] for case in sturdy)])]
        )
    )
    reference = [
        {
            "policy": run.policy,
            "requests": run.limit,
            "chunk": run.chunk,
            "published": published,
            "here": mean([run], "attainment", "all"),
        }
        for run, published in zip(bench.reference(), PUBLISHED.values(), strict=True)
    ]
    rows = [[_cell(value) for value in line.values()] for line in reference]
    print("\n".join(["", *aligned([["POLICY", "REQUESTS", "CHUNK", "PUBLISHED", "HERE"], *rows])]))
    return {"limit": bench.limit, "lines": lines, "sturdy": sturdy, "reference": reference}


def draw(document: dict[str, Any], path: Path) -> None:
    """Attainment against the load, a panel for each trace."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    traces = list(dict.fromkeys(line["trace"] for line in document["lines"]))
    figure, axes = pyplot.subplots(
        1, len(traces), figsize=(4.2 * len(traces), 3.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, trace in zip(axes[0], traces, strict=True):
        lines = [line for line in document["lines"] if line["trace"] == trace]
        for key, label, mark in (
            ("fcfs", "vLLM, FCFS, 8192", "o"),
            ("best", "best tuned baseline", "s"),
            ("ours", "SLO-ODBS, planned chunk", "^"),
        ):
            axis.plot([line["speed"] for line in lines], [line[key] for line in lines], marker=mark, label=label)
        axis.set(title=trace, xlabel="load: speed-up of the trace", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("share of requests that meet every target")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared", help="holds traces/ and scenarios/")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--limit", type=int, default=3000)
    parser.add_argument(
        "--budget-minutes", type=float, default=10.0, help="no replay is begun after so long; 0: print what is kept"
    )
    parser.add_argument("--quick", action="store_true", help="one trace, three loads, one seed")
    parser.add_argument("--only", choices=("ours", "baselines", "sturdy", "reference"))
    parser.add_argument("--traces", nargs="+", choices=TRACES, default=list(TRACES))
    parser.add_argument("--speeds", nargs="+", type=float, default=list(SPEEDS))
    parser.add_argument("--chunks", nargs="+", type=int, default=list(CHUNKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    args = parser.parse_args()
    if args.quick:
        args.traces, args.speeds, args.seeds = args.traces[:1], [1.0, 2.0, 3.2], [1]
    args.seeds = tuple(args.seeds)
    return args


def main() -> None:
    args = arguments()
    if not (args.data / "traces").is_dir():
        print(f"attainment: no traces in {args.data}: give their folder by --data", file=sys.stderr)
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    bench, end_s = Bench(args.data, args.limit, args.chunks), time.monotonic() + 60 * args.budget_minutes
    for run in plan(bench, args):
        if time.monotonic() >= end_s:
            break
        if run.result is None and run.policy in policy_names():
            began_s = time.process_time()
            bench.make(run, args.seeds)
            print(
                f"{run.path.stem}: {run.result['attainment']['all']:.4f}, {time.process_time() - began_s:.0f} s CPU",
                file=sys.stderr,
                flush=True,
            )
    document = report(bench, args)
    if args.json:
        args.json.write_text(json.dumps(document, indent=1))
    if args.plot:
        draw(document, args.plot)


if __name__ == "__main__":
    main()
