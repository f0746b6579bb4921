"""`uellm evaluate`: compares policies on traces, under a virtual clock or against real endpoints."""

from __future__ import annotations

import argparse
import importlib
from typing import NamedTuple


class Subcommand(NamedTuple):
    """An evaluation: its module and its line of help."""

    module: str
    help: str


SUBCOMMANDS = {
    "queue": Subcommand(
        "uellm.cli.evaluate_queue",
        "replay a trace under several queue policies, on vLLM's own scheduler and a virtual clock",
    ),
    "fleet": Subcommand(
        "uellm.cli.evaluate_fleet",
        "replay a trace over several replicas under several routes, on vLLM's own scheduler and a virtual clock",
    ),
    "live": Subcommand("uellm.cli.evaluate_live", "replay a trace against real endpoints, one after the other"),
    "autoscale": Subcommand(
        "uellm.cli.evaluate_autoscale", "compare rules for the number of replicas over a day of requests"
    ),
    "placement": Subcommand(
        "uellm.cli.evaluate_placement", "compare placement policies, or ways to give GPUs to pods, on random clusters"
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    subparsers = parser.add_subparsers(dest="evaluation", metavar="EVALUATION", required=True)
    for name, subcommand in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=subcommand.help, description=subcommand.help)
        importlib.import_module(subcommand.module).add_arguments(subparser)


def run(args: argparse.Namespace) -> int:
    """Run one evaluation."""
    return int(importlib.import_module(SUBCOMMANDS[args.evaluation].module).run(args))
