"""`uellm evaluate placement`: compares the placement policies on random clusters or on given instances."""

from __future__ import annotations

import argparse
import json
import random
from typing import Any

from uellm.cli.arguments import add_output, count, progress
from uellm.cli.files import read_json
from uellm.errors import BadInput
from uellm.evaluate.placement import compare, random_instance
from uellm.planner.placement.solver import OBJECTIVES, Instance
from uellm.text import aligned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--clusters", type=count, default=100, metavar="N", help="number of random clusters (default: 100)"
    )
    parser.add_argument("--devices", type=count, default=8, metavar="N", help="GPUs in a cluster at most (default: 8)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the clusters (default: 1)")
    parser.add_argument(
        "--instance", nargs="+", metavar="FILE", help="compare on these instances of `uellm place` instead"
    )
    parser.add_argument("--objective", default="latency", help=f"{' or '.join(OBJECTIVES)} (default: latency)")
    add_output(parser, "table", "json")


def run(args: argparse.Namespace) -> int:
    """Place and print."""
    if args.objective not in OBJECTIVES:
        raise BadInput("--objective", f"{args.objective!r} is not one of {', '.join(OBJECTIVES)}")
    if args.devices < 2 or args.clusters < 1:
        raise BadInput("--devices", "a comparison takes 2 devices or more, and 1 cluster or more")
    if args.instance:
        instances = [Instance.from_dict(read_json(name)) for name in args.instance]
    else:
        generator = random.Random(args.seed)
        instances = [random_instance(generator, args.devices) for _ in range(args.clusters)]
    document = compare(instances, args.objective, progress)
    print(json.dumps(document) if args.output == "json" else _table(document))
    return 0


def _table(document: dict[str, Any]) -> str:
    head = ["POLICY", "PLACED", "LATENCY / LEAST", "SLOWEST STAGE / LEAST", "DEVICES", "SOLVE mean/max"]
    rows = [
        [
            result["policy"],
            f"{result['placed']:.1%}",
            *(_number(result[key]) for key in ("latencyRatio", "bottleneckRatio", "devices")),
            "/".join(f"{result['solveSeconds'][key] * 1e3:.1f}ms" for key in ("mean", "max")),
        ]
        for result in document["results"]
    ]
    title = f"{document['clusters']} clusters, {document['compared']} of which every policy could place"
    return "\n".join([title, *aligned([head, *rows])])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
