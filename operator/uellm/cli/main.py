"""`uellm COMMAND ...`: finds the command's module, imports only that one, and turns its errors into exit statuses.

A command is a module with `add_arguments(parser)` and `run(args) -> int`. It is imported when it is called, so that
an image which holds one role needs the packages of that role alone.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import NamedTuple

from uellm import __version__
from uellm.errors import UellmError


class Command(NamedTuple):
    """A subcommand: the module that holds it, the extra that its packages come with, and its line of help."""

    module: str
    extra: str
    help: str


COMMANDS = {
    "plan": Command("uellm.cli.plan", "", "which GPUs and which layers on which, and why"),
    "place": Command("uellm.cli.place", "", "the layer-placement solver alone"),
    "model": Command("uellm.cli.model", "", "bytes by layer of a model, from its config.json"),
    "calibrate": Command("uellm.cli.calibrate", "", "the step-time model of an engine, fitted to measured steps"),
    "crds": Command("uellm.cli.crds", "", "the CustomResourceDefinitions, rendered from the types"),
    "profile": Command("uellm.cli.profile", "profiler", "this node's GPUs, for a person"),
    "profiler": Command("uellm.cli.profiler", "profiler", "the DaemonSet's process: keeps a node's GPUNodeProfile"),
    "device-plugin": Command("uellm.cli.device_plugin", "profiler", "simulated GPUs through the kubelet's own API"),
    "controller": Command("uellm.cli.controller", "controller", "the operator's process"),
    "extender": Command("uellm.cli.extender", "extender", "the scheduler extender's process"),
    "sidecar": Command("uellm.cli.sidecar", "sidecar", "the SLO-ordered queue in front of an engine"),
    "run": Command("uellm.cli.run", "sidecar", "an LLMService on this machine, without a cluster"),
    "evaluate": Command("uellm.cli.evaluate", "evaluate", "policies over traces, and real endpoints under load"),
    "cluster": Command("uellm_devcluster.cli", "", "a real Kubernetes cluster on this machine"),
}


def plugin() -> int:
    """`kubectl uellm ...`: kubectl runs the program `kubectl-uellm` with the rest of its arguments."""
    return main(program="kubectl uellm")


def main(argv: list[str] | None = None, *, program: str = "uellm") -> int:
    """Run one command and return its exit status: 0 done, 1 it cannot be done, 2 bad input."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv and argv[0] in COMMANDS else None
    parser = argparse.ArgumentParser(prog=program, description="UELLM: large language models on Kubernetes")
    parser.add_argument("--version", action="version", version=f"uellm {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command_name, command in COMMANDS.items():
        subparser = subparsers.add_parser(command_name, help=command.help, description=command.help)
        if command_name == name:
            try:
                module = importlib.import_module(command.module)
            except ModuleNotFoundError as error:
                return _missing(command_name, command, error)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except UellmError as error:
        print(f"{program} {args.command}: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The reader (`| head`) left; nobody is there to be told.
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


def _missing(name: str, command: Command, error: ModuleNotFoundError) -> int:
    if command.extra and not (error.name or "").startswith("uellm"):
        remedy = f"install it: pip install 'uellm-operator[{command.extra}]'"
    elif (error.name or "").startswith("uellm_devcluster"):
        remedy = "it is a part of the source checkout alone: run `make setup` there"
    else:
        remedy = "the installation is damaged: install uellm-operator again"
    print(f"uellm {name}: the Python package {error.name!r} is missing; {remedy}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
