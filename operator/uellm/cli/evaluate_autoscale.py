"""`uellm evaluate autoscale`: compares rules for the number of replicas over a day of requests."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from uellm.autoscaling import MeanLengths, ReplicaEngine
from uellm.cli.arguments import add_output, count, positive, progress
from uellm.cli.evaluate_queue import add_inputs, batched_tokens
from uellm.cli.files import read_yaml
from uellm.errors import BadInput
from uellm.evaluate.autoscale.compare import NAMES, Comparison, compare
from uellm.evaluate.autoscale.day import SHAPES, make_days
from uellm.evaluate.queue import Scenario
from uellm.evaluate.scenario import read_classes
from uellm.evaluate.traces import read_trace
from uellm.planner.cost.engine_file import EngineFile
from uellm.text import aligned

MEAN_REPLICAS = 2.0
"""Without a speed: how many replicas the mean load saturates."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_inputs(parser)
    parser.add_argument(
        "--speed",
        type=positive,
        metavar="X",
        help=f"factor on the trace's mean arrival rate (default: such that the day's mean saturates {MEAN_REPLICAS:g} "
        "replicas)",
    )
    parser.add_argument(
        "--shape",
        choices=tuple(SHAPES),
        default="azure-conversation",
        help="daily curve for a trace shorter than a day (default: %(default)s)",
    )
    parser.add_argument(
        "--days",
        type=count,
        default=2,
        metavar="N",
        help="days; the last one is judged, earlier ones are history (default: 2)",
    )
    parser.add_argument(
        "--startup",
        nargs="+",
        action="extend",
        type=positive,
        metavar="S",
        help="seconds that a replica takes to start (default: 120 480)",
    )
    parser.add_argument(
        "--policy",
        nargs="+",
        action="extend",
        metavar="P",
        help=f"policies to compare (default: all): {', '.join(NAMES)}; `curve`: clairvoyant but for bursts",
    )
    parser.add_argument(
        "--max-replicas",
        type=count,
        metavar="N",
        help="limit on the number of replicas (default: twice the fixed number)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the days (default: 1)")
    parser.add_argument(
        "--limit",
        type=count,
        default=0,
        metavar="N",
        help="requests in the judged day at most; lowers the speed (default: any number)",
    )
    parser.add_argument(
        "--max-tokens-per-request",
        type=count,
        default=12_000,
        metavar="N",
        help="leave out requests with more tokens, prompt and output (default: %(default)s)",
    )
    parser.add_argument(
        "--max-batched-tokens",
        default="auto",
        metavar="N|auto",
        help="tokens that the engine computes in a step (default: auto, as the planner chooses)",
    )
    parser.add_argument("--jobs", type=count, default=1, metavar="N", help="processes (default: 1)")
    add_output(parser, "table", "json")


def run(args: argparse.Namespace) -> int:
    """Simulate and print."""
    names = args.policy or list(NAMES)
    for name in names:
        if name not in NAMES:
            raise BadInput("--policy", f"{name!r} is none of {', '.join(NAMES)}")
    if args.days < 1:
        raise BadInput("--days", "must be 1 or more")
    if args.jobs < 1:
        raise BadInput("--jobs", "must be 1 or more")
    if args.max_replicas == 0:
        raise BadInput("--max-replicas", "must be 1 or more")
    comparison = _comparison(args)
    days = comparison.days
    document = {
        "trace": Path(args.trace).name,
        "requests": len(days.load),
        "shape": args.shape if days.made else None,
        "saturatedRequestsPerSecond": comparison.replica.saturated(comparison.lengths).requests_per_s,
        "results": compare(comparison, names, args.startup or [120.0, 480.0], progress, processes=args.jobs),
    }
    print(json.dumps(document) if args.output == "json" else _table(document))
    return 0


def _comparison(args: argparse.Namespace) -> Comparison:
    trace = read_trace(Path(args.trace))
    if trace.complaint:
        progress(trace.complaint)
    classes = read_classes(read_yaml(args.classes), Path(args.classes).name)
    engine = EngineFile.read(Path(args.engine))
    longest = min(args.max_tokens_per_request, engine.max_model_len)
    scenario = Scenario(trace, classes, engine, limit=None, max_tokens=longest)
    chunk = batched_tokens(args.max_batched_tokens, scenario)
    days = make_days(
        trace,
        classes,
        days=args.days,
        shape=args.shape,
        speed=_speed(args, scenario, chunk),
        seed=args.seed,
        max_tokens=longest,
    )
    if not len(days.load):
        raise BadInput("--speed", "leaves no request in the judged day: make it or --limit larger")
    return Comparison(days, engine, chunk, args.max_replicas, args.days - 1)


def _speed(args: argparse.Namespace, scenario: Scenario, chunk: int) -> float:
    """The given speed, or that of MEAN_REPLICAS; not so fast that a day has more requests than the limit."""
    jobs, engine = scenario.jobs(args.seed), scenario.engine
    span_s = max(jobs[-1].arrival_s, 1.0)
    speed = args.speed
    if speed is None:
        replica = ReplicaEngine(engine.step, chunk, engine.max_num_seqs, engine.kv_tokens)
        lengths = MeanLengths(
            sum(job.prompt_tokens for job in jobs) / len(jobs), sum(job.output_tokens for job in jobs) / len(jobs)
        )
        speed = MEAN_REPLICAS * replica.saturated(lengths).requests_per_s * span_s / len(jobs)
    if args.limit:
        speed = min(speed, args.limit * span_s / (86_400.0 * len(jobs)))
    return float(speed)


def beside_uellm(result: dict[str, Any]) -> tuple[str, str]:
    """What a baseline needs for the attainment of UELLM's rule, and what it attains in its GPU hours; else dashes."""
    beside = result.get("besideUellm")
    if beside is None:
        return "-", "-"
    hours, attained = beside["gpuHoursAtItsAttainment"], beside["attainmentAtItsGpuHours"]
    return "none found" if hours is None else f"{hours:.1f}", "none found" if attained is None else f"{attained:.4f}"


def _table(document: dict[str, Any]) -> str:
    classes = sorted({name for result in document["results"] for name in result["attainment"]} - {"all"})
    compared = any("besideUellm" in result for result in document["results"])
    head = ["START-UP", "POLICY", "ATTAINED", *classes, "GPU HOURS", "REPLICAS mean/peak", "CHANGES", "SETTING"]
    head += ["HOURS AT UELLM'S ATTAINMENT", "ATTAINED AT UELLM'S HOURS"] if compared else []
    rows = [
        [
            f"{result['startupSeconds']:g}s",
            result["policy"],
            *(f"{result['attainment'].get(name, 1.0):.4f}" for name in ("all", *classes)),
            f"{result['gpuHours']:.1f}",
            f"{result['replicas']['mean']:.2f}/{result['replicas']['peak']}",
            str(result["replicas"]["changes"]),
            ", ".join(f"{name} {value:g}" for name, value in result.get("setting", {}).items()) or "-",
            *(beside_uellm(result) if compared else ()),
        ]
        for result in document["results"]
    ]
    shape = f" in a day shaped as {document['shape']}" if document["shape"] else ""
    title = (
        f"{document['trace']}: {document['requests']} requests{shape}; a replica is saturated by "
        f"{document['saturatedRequestsPerSecond']:.1f} requests/s"
    )
    return "\n".join([title, *aligned([head, *rows])])
