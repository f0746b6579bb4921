"""`uellm evaluate placement`: compares placement policies, or ways to give GPUs to pods, on random clusters."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from typing import Any

from uellm.cli.arguments import add_output, count, not_negative, progress
from uellm.cli.files import read_json
from uellm.errors import BadInput, CannotBeDone
from uellm.evaluate.placement import compare, random_instance
from uellm.planner.placement.solver import OBJECTIVES, Instance
from uellm.text import aligned

POLICIES, ALLOCATION = "policies", "allocation"
CLUSTERS = {POLICIES: 100, ALLOCATION: 10}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--compare",
        choices=(POLICIES, ALLOCATION),
        default=POLICIES,
        help="placement policies, or ways to give GPUs to pods: device plugin, with UELLM's extender, DRA "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--clusters", type=count, metavar="N", help="number of random clusters (default: 100; of allocation: 10)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the clusters (default: 1)")
    parser.add_argument(
        "--devices", type=count, default=8, metavar="N", help="policies: GPUs in a cluster at most (default: 8)"
    )
    parser.add_argument(
        "--instance", nargs="+", metavar="FILE", help="policies: compare on these instances of `uellm place` instead"
    )
    parser.add_argument(
        "--objective", default="latency", help=f"policies: {' or '.join(OBJECTIVES)} (default: latency)"
    )
    parser.add_argument(
        "--nodes", type=count, default=4, metavar="N", help="allocation: nodes in a cluster (default: 4)"
    )
    parser.add_argument(
        "--services",
        type=count,
        default=20,
        metavar="N",
        help="allocation: services that come to a cluster (default: 20)",
    )
    parser.add_argument(
        "--unlike",
        type=not_negative,
        default=0.5,
        metavar="X",
        help="allocation: share of the nodes that have GPUs of two products, 0 to 1 (default: 0.5)",
    )
    add_output(parser, "table", "json")


def run(args: argparse.Namespace) -> int:
    """Place and print."""
    clusters = CLUSTERS[args.compare] if args.clusters is None else args.clusters
    if clusters < 1:
        raise BadInput("--clusters", "a comparison takes 1 cluster or more")
    document, table = _allocation(args, clusters) if args.compare == ALLOCATION else _policies(args, clusters)
    print(json.dumps(document) if args.output == "json" else table(document))
    return 0


def _policies(args: argparse.Namespace, clusters: int) -> tuple[dict[str, Any], Callable[[dict[str, Any]], str]]:
    if args.objective not in OBJECTIVES:
        raise BadInput("--objective", f"{args.objective!r} is not one of {', '.join(OBJECTIVES)}")
    if args.devices < 2:
        raise BadInput("--devices", "a comparison takes 2 devices or more")
    if args.instance:
        instances = [Instance.from_dict(read_json(name)) for name in args.instance]
    else:
        generator = random.Random(args.seed)
        instances = [random_instance(generator, args.devices) for _ in range(clusters)]
    return compare(instances, args.objective, progress), _table


def _allocation(args: argparse.Namespace, clusters: int) -> tuple[dict[str, Any], Callable[[dict[str, Any]], str]]:
    if args.instance:
        raise BadInput("--instance", f"has no nodes to compare allocation on: it goes with --compare {POLICIES}")
    if args.nodes < 1 or args.services < 1:
        raise BadInput("--nodes" if args.nodes < 1 else "--services", "a comparison takes 1 or more")
    if args.unlike > 1:
        raise BadInput("--unlike", f"{args.unlike:g} is not a share from 0 to 1")
    try:
        from uellm.evaluate.allocation.compare import compare as compare_allocation
    except ModuleNotFoundError as error:
        raise CannotBeDone(
            f"the Python package {error.name!r} is missing, with which the operator counts GPUs: pip install "
            "'uellm-operator[controller]'"
        ) from error
    document = compare_allocation(clusters, args.nodes, args.services, args.unlike, args.seed, progress)
    return document, _table_of_allocation


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


def _table_of_allocation(document: dict[str, Any]) -> str:
    head = ["ALLOCATION", "PLACED", "GPU HOURS WASTED", "BEYOND NEED", "STRANDED"]
    head += ["GPUS", "REQUESTS/S", "PER GPU", "REFUSED"]
    rows = [
        [
            result["mode"],
            f"{result['placed']:.1%}",
            f"{result['wasted']:.1%}",
            *(f"{result['gpuHours'][key]:.1f}h" for key in ("beyondNeed", "stranded")),
            *(_number(result[key]) for key in ("gpus", "requestsPerSecond", "requestsPerSecondPerGpu")),
            ", ".join(f"{count} {reason}" for reason, count in result["refused"].items()) or "-",
        ]
        for result in document["results"]
    ]
    title = (
        f"{document['clusters']} clusters, {document['services']} services that need "
        f"{document['neededGpuHours']:.1f} GPU hours; GPUs and predicted rates of the {document['compared']} services "
        "that every way placed"
    )
    return "\n".join([title, *aligned([head, *rows])])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
