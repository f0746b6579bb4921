"""`uellm evaluate queue`: policies side by side over a trace, on vLLM's own scheduler under a virtual clock."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from uellm.api.scalars import duration_s
from uellm.cli.files import read_text
from uellm.errors import BadInput
from uellm.evaluate.bound import bound
from uellm.evaluate.chunk import chunk_for
from uellm.evaluate.plot import check, plot
from uellm.evaluate.policies import policy_names
from uellm.evaluate.queue import Scenario, cells, run_cells
from uellm.evaluate.scenario import read_classes
from uellm.evaluate.table import table
from uellm.evaluate.traces import read_trace
from uellm.planner.cost.engine_file import EngineFile

GUARDS = ("gate", "past_future", "tpot_guard", "shedding", "fairness", "ageing")
DEFAULT_POLICIES = ["engine-FCFS", "engine-EDF", "SLO-ODBS"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    some: dict[str, Any] = {"nargs": "+", "action": "extend"}
    parser.add_argument(
        "--trace", required=True, metavar="FILE", help="in Azure's, ServeGen's or Mooncake's form, or its .gz"
    )
    parser.add_argument("--classes", required=True, metavar="FILE", help="classes of requests with targets and shares")
    parser.add_argument("--engine", required=True, metavar="FILE", help="the engine's step times and limits")
    parser.add_argument("--speed", type=positive, metavar="X", help="speed-up of the arrivals (default 1)", **some)
    parser.add_argument("--policy", metavar="P", help=f"any of {', '.join(policy_names())}", **some)
    parser.add_argument("--seed", type=int, metavar="S", help="seed of classes and predictions (default 1)", **some)
    parser.add_argument(
        "--limit", type=count, default=3000, metavar="N", help="requests to replay (default 3000; 0: all)"
    )
    parser.add_argument(
        "--max-tokens-per-request", type=count, default=12_000, metavar="N", help="longer ones are left out"
    )
    parser.add_argument("--max-batched-tokens", metavar="N|auto", help="the engine's chunk (default: as in its file)")
    parser.add_argument("--bound", action="store_true", help="an upper bound on the attainment of any policy, too")
    parser.add_argument(
        "--predictor",
        choices=("drawn", "online"),
        default="drawn",
        help="of output lengths: as the classes' file says, or the sidecar's own (default: drawn)",
    )
    parser.add_argument(
        "--length-sigma", type=not_negative, metavar="S", help="noise of the predicted lengths, as a lognormal's"
    )
    parser.add_argument(
        "--engine-error",
        type=positive,
        default=1.0,
        metavar="X",
        help="the sidecar takes the engine's times for X times the truth",
    )
    parser.add_argument(
        "--reaction-ms",
        type=not_negative,
        default=0.0,
        metavar="MS",
        help="what the sidecar sends reaches the engine so much later",
    )
    parser.add_argument(
        "--request-overhead",
        type=duration,
        default=0.0,
        metavar="TIME",
        help="every request reaches the engine so much later, sidecar or not: its API server (such as 10ms)",
    )
    parser.add_argument(
        "--jitter",
        type=not_negative,
        default=0.0,
        metavar="S",
        help="noise of the overheads and of the steps' times, as a lognormal's sigma",
    )
    parser.add_argument(
        "--max-queued", type=count, metavar="N", help="the sidecar's queue is full at N (default: no bound)"
    )
    parser.add_argument(
        "--guards",
        nargs="+",
        default=[],
        metavar="GUARD",
        help=f"switched off by no-NAME, on by NAME: {', '.join(GUARDS)}",
    )
    parser.add_argument("--jobs", type=count, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--plot", metavar="FILE", help="attainment and p99 against the load, as .svg, .png or .pdf")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")


def run(args: argparse.Namespace) -> int:
    """Replay and print."""
    check_plot(args.plot)
    scenario = _scenario(args)
    chunk = _chunk(args.max_batched_tokens, scenario)
    speeds, seeds = args.speed or [1.0], args.seed or [1]
    todo = cells(args.policy or DEFAULT_POLICIES, speeds, seeds, chunk)
    complaint = scenario.trace.complaint
    if complaint:
        tell(complaint)
    jobs = scenario.jobs(seeds[0])
    document: dict[str, Any] = {"trace": scenario.trace.name, "requests": len(jobs)}
    document["results"] = run_cells(scenario, todo, processes=args.jobs, tell=tell)
    if args.bound:
        bounds = {
            f"{speed:g}": _mean([bound(scenario.jobs(s), scenario.engine, speed) for s in seeds]) for speed in speeds
        }
        document["bound"] = bounds
    plot_if_wanted(document, args.plot)
    print(json.dumps(document) if args.output == "json" else table(document))
    return 0


def _scenario(args: argparse.Namespace) -> Scenario:
    classes = read_classes(read_yaml(args.classes), Path(args.classes).name)
    if args.length_sigma is not None:
        classes = replace(classes, sigma=args.length_sigma)
    return Scenario(
        read_trace(Path(args.trace)),
        classes,
        EngineFile.read(Path(args.engine)),
        limit=args.limit or None,
        max_tokens=args.max_tokens_per_request,
        engine_error=args.engine_error,
        reaction_s=args.reaction_ms / 1e3,
        request_overhead_s=args.request_overhead,
        jitter=args.jitter,
        online=args.predictor == "online",
        guards=_guards(args.guards),
        **({} if args.max_queued is None else {"max_queued": args.max_queued}),
    )


def check_plot(file: str | None) -> None:
    """Whether the plot can be written that is wanted. Raises BadInput, CannotBeDone."""
    if file:
        check(Path(file))


def plot_if_wanted(document: dict[str, Any], file: str | None) -> None:
    """Write the plot where a file is named for it. Raises BadInput."""
    if file:
        plot(document, Path(file))


def read_yaml(name: str) -> Any:
    """A YAML file's document. Raises BadInput."""
    try:
        return yaml.safe_load(read_text(name))
    except yaml.YAMLError as error:
        raise BadInput(name, f"is not YAML: {' '.join(str(error).split())}") from error


def _chunk(text: str | None, scenario: Scenario) -> int:
    if text is None:
        return scenario.engine.max_num_batched_tokens
    if text == "auto":
        chunk = chunk_for(scenario)
        tell(f"--max-batched-tokens auto: {chunk.tokens}: {chunk.reason}")
        return chunk.tokens
    if not text.isdecimal() or int(text) < 1:
        raise BadInput("--max-batched-tokens", f"must be a number of tokens or auto, and is {text!r}")
    return int(text)


def _guards(names: list[str]) -> dict[str, bool]:
    guards = {}
    for name in names:
        guard = name.removeprefix("no-").replace("-", "_")
        if guard not in GUARDS:
            raise BadInput("--guards", f"{name!r} is none of {', '.join(GUARDS)}, each with or without no-")
        guards[guard] = not name.startswith("no-")
    return guards


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def tell(line: str) -> None:
    """A line on standard error, which the document is not on."""
    print(line, file=sys.stderr, flush=True)


def count(text: str) -> int:
    """An argument that is a whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number, 0 or more")
    return int(text)


def duration(text: str) -> float:
    """An argument that is a time such as `10ms`; in seconds."""
    try:
        return duration_s(text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> float:
    """An argument that is a number above 0."""
    number = not_negative(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def not_negative(text: str) -> float:
    """An argument that is a number, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number, 0 or more")
    return number
