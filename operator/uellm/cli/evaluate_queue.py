"""`uellm evaluate queue`: compares policies on a trace, on vLLM's own scheduler under a virtual clock."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from uellm.cli.arguments import add_output, count, duration, not_negative, positive, progress
from uellm.cli.files import read_yaml
from uellm.errors import BadInput
from uellm.evaluate.bound import bound
from uellm.evaluate.chunk import chunk_for
from uellm.evaluate.plot import check, plot
from uellm.evaluate.policies import policy_names
from uellm.evaluate.queue import Cell, Scenario, cells, run_cell, run_cells
from uellm.evaluate.scenario import read_classes
from uellm.evaluate.table import table
from uellm.evaluate.traces import read_trace
from uellm.planner.cost.engine_file import EngineFile

GUARDS = ("gate", "past_future", "tpot_guard", "shedding", "fairness", "ageing")
DEFAULT_POLICIES = ["engine-FCFS", "engine-EDF", "SLO-ODBS"]


_SEVERAL: dict[str, Any] = {"nargs": "+", "action": "extend"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_replay_arguments(parser, DEFAULT_POLICIES)
    parser.add_argument(
        "--bound", action="store_true", help="also compute an upper bound on the attainment of any policy"
    )


def add_replay_arguments(parser: argparse.ArgumentParser, policies: list[str]) -> None:
    """The arguments of a replay; `policies`: those that are compared by default."""
    add_inputs(parser)
    _add_cells(parser, policies)
    _add_errors(parser)
    _add_queue(parser)


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The files: trace, classes and engine."""
    parser.add_argument(
        "--trace",
        required=True,
        metavar="FILE",
        help="request trace in the format of Azure, ServeGen, VTC or Mooncake, plain or gzip",
    )
    parser.add_argument(
        "--classes", required=True, metavar="FILE", help="YAML file of request classes, each with targets and a share"
    )
    parser.add_argument(
        "--engine", required=True, metavar="FILE", help="JSON file of the engine's step times and limits"
    )


def _add_cells(parser: argparse.ArgumentParser, policies: list[str]) -> None:
    """What is compared, and on which part of the trace."""
    parser.add_argument(
        "--speed", type=positive, metavar="X", help="factor on the arrival rate (default: 1)", **_SEVERAL
    )
    parser.add_argument(
        "--policy",
        metavar="P",
        help=f"policies to compare (default: {', '.join(policies)}): {', '.join(policy_names())}",
        **_SEVERAL,
    )
    parser.add_argument(
        "--seed", type=int, metavar="S", help="seed of classes and predicted lengths (default: 1)", **_SEVERAL
    )
    parser.add_argument(
        "--limit", type=count, default=3000, metavar="N", help="requests to replay (default: 3000; 0: all)"
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
        metavar="N|auto",
        help="tokens that the engine computes in a step (default: as in its file)",
    )


def _add_errors(parser: argparse.ArgumentParser) -> None:
    """By what the sidecar's knowledge and the engine differ from the ideal."""
    parser.add_argument(
        "--predictor",
        choices=("drawn", "online"),
        default="drawn",
        help="predicted output lengths: drawn as the classes' file says, or by the sidecar's own predictor "
        "(default: drawn)",
    )
    parser.add_argument(
        "--length-sigma", type=not_negative, metavar="S", help="sigma of the lognormal noise on drawn lengths"
    )
    parser.add_argument(
        "--engine-error",
        type=positive,
        default=1.0,
        metavar="X",
        help="the sidecar assumes X times the engine's real step times (default: 1)",
    )
    parser.add_argument(
        "--reaction-ms",
        type=not_negative,
        default=0.0,
        metavar="MS",
        help="delay between the sidecar's decision and the engine, in milliseconds (default: 0)",
    )
    parser.add_argument(
        "--request-overhead",
        type=duration,
        default=0.0,
        metavar="TIME",
        help="time that every request spends in the API server before it reaches the engine, such as 10ms (default: 0)",
    )
    parser.add_argument(
        "--jitter",
        type=not_negative,
        default=0.0,
        metavar="S",
        help="noise of the overheads and of the step times: the sigma of a lognormal distribution (default: 0)",
    )


def _add_queue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-queued", type=count, metavar="N", help="limit on the length of the sidecar's queue (default: none)"
    )
    parser.add_argument(
        "--guards",
        nargs="+",
        default=[],
        metavar="GUARD",
        help=f"switch a guard on (NAME) or off (no-NAME): {', '.join(GUARDS)}",
    )
    parser.add_argument("--jobs", type=count, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument(
        "--plot", metavar="FILE", help="also plot attainment and p99 latencies against the load, as .svg, .png or .pdf"
    )
    add_output(parser, "table", "json")


def run(args: argparse.Namespace) -> int:
    """Replay and print."""
    check_plot(args.plot)
    scenario = read_scenario(args)
    todo = read_cells(args, scenario, DEFAULT_POLICIES)
    document = head(args, scenario)
    document["results"] = run_cells(scenario, todo, run=run_cell, processes=args.jobs, progress=progress)
    if args.bound:
        seeds = args.seed or [1]
        bounds = {
            f"{speed:g}": _mean([bound(scenario.jobs(s), scenario.engine, speed) for s in seeds])
            for speed in args.speed or [1.0]
        }
        document["bound"] = bounds
    print_document(args, document)
    return 0


def read_cells(args: argparse.Namespace, scenario: Scenario, policies: list[str]) -> list[Cell]:
    """The replays to run. Raises BadInput."""
    chunk = batched_tokens(args.max_batched_tokens, scenario)
    return cells(args.policy or policies, args.speed or [1.0], args.seed or [1], chunk)


def head(args: argparse.Namespace, scenario: Scenario) -> dict[str, Any]:
    """The document without results. Rows of the trace that were left out are reported."""
    if scenario.trace.complaint:
        progress(scenario.trace.complaint)
    return {"trace": scenario.trace.name, "requests": len(scenario.jobs((args.seed or [1])[0]))}


def print_document(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """Print the results, and plot them if wanted. Raises BadInput."""
    plot_if_wanted(document, args.plot)
    print(json.dumps(document) if args.output == "json" else table(document))


def read_scenario(args: argparse.Namespace) -> Scenario:
    """What all replays have in common. Raises BadInput."""
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
    """Check that the requested plot can be written. Raises BadInput, CannotBeDone."""
    if file:
        check(Path(file))


def plot_if_wanted(document: dict[str, Any], file: str | None) -> None:
    """Write the plot if it is requested. Raises BadInput."""
    if file:
        plot(document, Path(file))


def batched_tokens(text: str | None, scenario: Scenario) -> int:
    """The value of `--max-batched-tokens`. Raises BadInput, CannotBeDone."""
    if text is None:
        return scenario.engine.max_num_batched_tokens
    if text == "auto":
        chunk = chunk_for(scenario)
        progress(f"--max-batched-tokens auto: {chunk.tokens}: {chunk.reason}")
        return chunk.tokens
    if not text.isdecimal() or int(text) < 1:
        raise BadInput("--max-batched-tokens", f"must be a number of tokens or auto, and is {text!r}")
    return int(text)


def _guards(names: list[str]) -> dict[str, bool]:
    guards = {}
    for name in names:
        guard = name.removeprefix("no-").replace("-", "_")
        if guard not in GUARDS:
            raise BadInput("--guards", f"{name!r} is not a guard: give {', '.join(GUARDS)}, each with or without no-")
        guards[guard] = not name.startswith("no-")
    return guards


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
