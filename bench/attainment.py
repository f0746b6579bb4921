"""SLO attainment of the sidecar's policy beside tuned baselines, over traces and loads, on vLLM's own scheduler.

    python bench/attainment.py [--data DIR] [--json FILE] [--plot FILE] [--budget-minutes 10] [--quick]
                               [--traces NAME ...] [--speeds X ...] [--seeds S ...] [--only PART ...]

    ours        SLO-ODBS at the chunk size that the planner chooses (auto), with every seed
    baselines   FCFS, EDF (two kinds) and SJF in the engine itself, and llm-d's rule, each at 512, 1,024, 2,048 and
                8,192 batched tokens and at the planner's chunk size. TUNED is the best result at the first four;
                AT OUR CHUNK is the best result at the planner's chunk size, which already helps the baselines a lot.
                Where ours is within .005 of 1, no baseline can be better by more than that, so only FCFS is replayed.
                Baselines .03 below the best at the first seed are not replayed with the other seeds.
    reference   x3.2 of the first trace, 3,000 and 12,000 requests: the published results of FCFS and EDF on the same
                scheduler, and ours
    sturdy      the same at x3.2 with worse predictions (sigma 1.5), with an engine model that is 50 % off, and with a
                slow connection to the engine

Every result is stored under build/bench/attainment, so a second call continues where the first one ended. Results of
the sidecar's policy are discarded when its scheduler changes. `-` marks a replay that has not run yet.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attainment_grid import CHUNKS, FCFS, KEPT, MARGIN, OTHERS, OURS, SEEDS, SPEEDS, STURDY, TRACES, Grid, Run, mean

from uellm.text import aligned

ROOT = Path(__file__).parents[1]
PARTS = ("ours", "baselines", "reference", "sturdy")
PUBLISHED = {
    (FCFS, 3000, 8192): 0.327,
    (FCFS, 3000, 512): 0.389,
    (FCFS, 12_000, 8192): 0.159,
    (FCFS, 12_000, 512): 0.185,
    ("engine-EDF", 3000, 8192): 0.345,
    ("engine-EDF", 3000, 512): 0.808,
    ("engine-EDF", 12_000, 8192): 0.089,
    ("engine-EDF", 12_000, 512): 0.189,
    (OURS, 3000, 8192): 0.811,
    (OURS, 3000, 512): 0.856,
    (OURS, 12_000, 8192): 0.776,
    (OURS, 12_000, 512): 0.817,
}
"""Attainment on azure2023_conv x3.2, seed 1; that of SLO-ODBS of a rough policy of the same kind."""
FCFS_MARGIN, FCFS_GOOD = 0.002, 0.99
"""Where FCFS is this good, ours must not be below it by more than this margin."""
COLUMNS = {
    "TRACE": "trace",
    "LOAD": "speed",
    "FCFS 8192": "fcfs",
    "TUNED": "best",
    "WHICH": "bestName",
    "AT OUR CHUNK": "bestAtOurChunk",
    "THAT IS": "bestNameAtOurChunk",
    "RUN": "baselinesRun",
    "OURS": "ours",
    "CHUNK": "chunk",
    "TOKENS/FCFS": "tokensOfFcfs",
    "SHED": "shed",
    "SEEDS": "seeds",
    "NO WORSE": "noWorse",
}


def reference(grid: Grid) -> list[Run]:
    """The published cases, and ours at the planner's chunk."""
    trace = next(iter(TRACES))
    published = [Run(trace, limit, policy, chunk, 3.2, 1) for policy, limit, chunk in PUBLISHED]
    planned = [Run(trace, limit, OURS, grid.chunk(trace), 3.2, 1) for limit in (3000, 12_000)]
    return list(dict.fromkeys([*published, *planned]))


def plan(grid: Grid, args: argparse.Namespace) -> Iterator[Run]:
    """Every replay that is needed. Some depend on the results of earlier ones."""
    parts = frozenset(args.only)
    if "reference" in parts:
        yield from reference(grid)
    for trace in args.traces:
        for speed in args.speeds:
            yield from grid.wanted(trace, speed, parts)
    if "sturdy" in parts:
        for name in STURDY:
            yield from grid.ours(args.traces[0], 3.2, name)


def compare(grid: Grid, trace: str, speed: float) -> dict[str, Any]:
    """One row of the table: the best baseline, FCFS at the engine's default chunk size, and ours."""
    means = {name: share for name, runs in grid.contenders(trace, speed).items() if (share := mean(runs)) is not None}
    tuned, beside_ours = _best(means, CHUNKS), None
    chunk = grid.chunk(trace)
    if all(grid.baseline(trace, speed, policy, chunk)[0].result for policy in (FCFS, *OTHERS)):
        beside_ours = _best(means, (chunk,))
    fcfs = [share for (policy, _), share in means.items() if policy == FCFS]
    ours, beside = grid.ours(trace, speed), grid.baseline(trace, speed, FCFS, chunk)[:1]
    attained = mean(ours)
    tokens = mean(ours, "outputTokensPerSecond"), mean(beside, "outputTokensPerSecond")
    return {
        "trace": trace,
        "speed": speed,
        "fcfs": mean(grid.baseline(trace, speed, FCFS, 8192)),
        "best": means[tuned] if tuned else None,
        "bestName": f"{tuned[0]} {tuned[1]}" if tuned else None,
        "bestAtOurChunk": means[beside_ours] if beside_ours else None,
        "bestNameAtOurChunk": beside_ours[0] if beside_ours else None,
        "baselinesRun": sum(grid.baseline(trace, speed, *name)[0].result is not None for name in grid.baselines(trace)),
        "ours": attained,
        "chunk": chunk,
        "tokensOfFcfs": tokens[0] / tokens[1] if tokens[0] and tokens[1] else None,
        "shed": mean(ours, "shed"),
        "seeds": sum(run.result is not None for run in ours),
        "noWorse": _no_worse(attained, max(means.values(), default=None), max(fcfs, default=0.0)),
    }


def _best(means: dict[tuple[str, int], float], chunks: tuple[int, ...]) -> tuple[str, int] | None:
    return max((name for name in means if name[1] in chunks), key=lambda name: means[name], default=None)


def _no_worse(ours: float | None, best: float | None, fcfs: float) -> bool | None:
    """Whether ours is within the allowed margins; None while that is not known."""
    if ours is None or best is None:
        return None
    return ours >= best - MARGIN and not (fcfs > FCFS_GOOD and ours < fcfs - FCFS_MARGIN)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "NO"}[value]
    if isinstance(value, float):
        return f"{value:.4f}" if value < 50 else f"{value:.0f}"
    return str(value)


def _print(rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    cells = [[_cell(row[key]) for key in columns.values()] for row in rows]
    print("\n".join([*aligned([list(columns), *cells]), ""]))


def report(grid: Grid, args: argparse.Namespace) -> dict[str, Any]:
    """Print the tables of the stored results, and return the same as one document."""
    lines = [compare(grid, trace, speed) for trace in args.traces for speed in sorted(args.speeds)]
    lines = [line for line in lines if line["baselinesRun"] or line["seeds"]]
    sturdy = [
        {"case": name or "as is", "attained": mean(grid.ours(args.traces[0], 3.2, name))} for name in ("", *STURDY)
    ]
    cases = [
        {
            "policy": run.policy,
            "requests": run.limit,
            "chunk": run.chunk,
            "published": PUBLISHED.get((run.policy, run.limit, run.chunk)),
            "here": mean([run]),
        }
        for run in reference(grid)
    ]
    _print(lines, COLUMNS)
    _print(sturdy, {"CASE": "case", "ATTAINED": "attained"})
    _print(cases, {name.upper(): name for name in cases[0]})
    return {"limit": grid.limit, "lines": lines, "sturdy": sturdy, "reference": cases}


def draw(document: dict[str, Any], path: Path) -> None:
    """Plot attainment against load, one panel for each trace."""
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
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared", help="holds traces/ and scenarios/")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--limit", type=int, default=3000)
    parser.add_argument(
        "--budget-minutes", type=float, default=10.0, help="no replay is begun after so long; 0: print what is kept"
    )
    parser.add_argument("--quick", action="store_true", help="one trace, three loads, one seed")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--traces", nargs="+", choices=TRACES, default=list(TRACES))
    parser.add_argument("--speeds", nargs="+", type=float, default=list(SPEEDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    args = parser.parse_args()
    if args.quick:
        args.traces, args.speeds, args.seeds = args.traces[:1], [1.0, 2.0, 3.2], [1]
    return args


def main() -> int:
    """Replay until the time is up, print, write. Returns 1 where ours is worse than a baseline."""
    args = arguments()
    if not (args.data / "traces").is_dir():
        print(f"attainment: no traces in {args.data}: give their folder by --data", file=sys.stderr)
        return 0
    KEPT.mkdir(parents=True, exist_ok=True)
    grid, end_s = Grid(args.data, args.limit, tuple(args.seeds)), time.monotonic() + 60 * args.budget_minutes
    for run in plan(grid, args):
        if time.monotonic() >= end_s:
            break
        if run.result is None:
            began_s = time.process_time()
            grid.make(run)
            spent_s = time.process_time() - began_s
            print(f"{run.path.stem}: {mean([run]):.4f}, {spent_s:.0f} s CPU", file=sys.stderr, flush=True)
    document = report(grid, args)
    if args.json:
        args.json.write_text(json.dumps(document, indent=1))
    if args.plot:
        draw(document, args.plot)
    return int(any(line["noWorse"] is False for line in document["lines"]))


if __name__ == "__main__":
    sys.exit(main())
