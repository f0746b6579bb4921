"""`uellm evaluate fleet`: compares routes over replicas, on vLLM's own scheduler under a virtual clock."""

from __future__ import annotations

import argparse
from typing import Any

from uellm.cli.arguments import count, positive, progress
from uellm.cli.evaluate_queue import (
    add_replay_arguments,
    check_plot,
    head,
    print_document,
    read_cells,
    read_scenario,
)
from uellm.errors import BadInput
from uellm.evaluate.fleet import fleet_cells, run_fleet_cell
from uellm.evaluate.fleet_door import SimulatedFleet
from uellm.evaluate.queue import run_cells
from uellm.routing import ROUTES

DEFAULT_POLICIES = ["SLO-ODBS"]
DEFAULT_ROUTES = ["random", "fewest-requests", "auto"]
MOST_REPLICAS = 256

_SEVERAL: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_replay_arguments(parser, DEFAULT_POLICIES)
    parser.add_argument(
        "--replicas", type=count, default=4, metavar="N", help="replicas at the start (default: %(default)s)"
    )
    parser.add_argument(
        "--route",
        metavar="R",
        help=f"routes to compare (default: {', '.join(DEFAULT_ROUTES)}): {', '.join(ROUTES)}",
        **_SEVERAL,
    )
    parser.add_argument(
        "--replica-speed",
        type=positive,
        metavar="X",
        help="speed of each replica, from the first on, as a factor on the engine's file (default: 1)",
        **_SEVERAL,
    )
    _add_events(parser)


def _add_events(parser: argparse.ArgumentParser) -> None:
    """Replicas are numbered from 0; times are seconds of the replay."""
    for name, text in (
        ("kill", "replica R dies T seconds after the start; its requests without a first token are sent again"),
        ("silence", "replica R sends no more reports from T seconds on"),
    ):
        parser.add_argument(f"--{name}", metavar="R@T", help=text, **_SEVERAL)
    parser.add_argument(
        "--join", type=positive, metavar="T", help="one more replica starts after T seconds", **_SEVERAL
    )
    parser.add_argument("--lying", type=count, metavar="R", help="replica R always reports that it is idle", **_SEVERAL)


def run(args: argparse.Namespace) -> int:
    """Replay and print."""
    check_plot(args.plot)
    fleet = _fleet(args)
    scenario = read_scenario(args)
    todo = fleet_cells(args.route or DEFAULT_ROUTES, read_cells(args, scenario, DEFAULT_POLICIES))
    document = head(args, scenario)
    document["results"] = run_cells(
        scenario,
        todo,
        run=lambda of, cell: run_fleet_cell(fleet, of, cell),
        processes=args.jobs,
        progress=progress,
    )
    print_document(args, document)
    return 0


def _fleet(args: argparse.Namespace) -> SimulatedFleet:
    if not 1 <= args.replicas <= MOST_REPLICAS:
        raise BadInput("--replicas", f"must be between 1 and {MOST_REPLICAS}, and is {args.replicas}")
    in_all = args.replicas + len(args.join)
    if len(args.replica_speed) > in_all:
        raise BadInput("--replica-speed", f"gives {len(args.replica_speed)} speeds for {in_all} replicas")
    for index in args.lying:
        _check_replica("--lying", index, in_all)
    return SimulatedFleet(
        replicas=args.replicas,
        speeds=tuple(args.replica_speed),
        kills=tuple(_event("--kill", text, in_all) for text in args.kill),
        joins=tuple(args.join),
        silences=tuple(_event("--silence", text, in_all) for text in args.silence),
        lying=frozenset(args.lying),
    )


def _event(option: str, text: str, replicas: int) -> tuple[int, float]:
    replica, at, seconds = text.partition("@")
    try:
        event = int(replica), float(seconds)
    except ValueError:
        event = -1, -1.0
    if not at or event[0] < 0 or not 0.0 <= event[1] < float("inf"):
        raise BadInput(option, f"{text!r} is not a replica and a time: write for example 1@30 for replica 1 after 30 s")
    _check_replica(option, event[0], replicas)
    return event


def _check_replica(option: str, index: int, replicas: int) -> None:
    if index >= replicas:
        raise BadInput(option, f"there is no replica {index}: they are numbered 0 to {replicas - 1}")
