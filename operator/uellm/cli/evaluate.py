"""`uellm evaluate`: policies over traces, under a virtual clock or against real endpoints."""

from __future__ import annotations

import argparse
import importlib
from typing import NamedTuple


class Subcommand(NamedTuple):
    """One of the evaluations: the module that holds it, and its line of help."""

    module: str
    help: str


SUBCOMMANDS = {
    "queue": Subcommand(
        "uellm.cli.evaluate_queue", "policies over a trace, on vLLM's own scheduler and a virtual clock"
    ),
    "live": Subcommand("uellm.cli.evaluate_live", "the same trace against real endpoints, one after the other"),
    "placement": Subcommand("uellm.cli.evaluate_placement", "placement policies over random clusters"),
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
