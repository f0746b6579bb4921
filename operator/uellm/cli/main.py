"""`uellm COMMAND ...`: imports the command's module, runs it, and turns its errors into exit statuses.

A command is a module with `add_arguments(parser)` and `run(args) -> int`. Only the module of the given command is
imported, so an image for one role needs only the packages of that role.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from typing import NamedTuple, NoReturn

from uellm import __version__
from uellm.errors import UellmError


class Command(NamedTuple):
    """A command: its module, the extra that installs its packages, and its line of help."""

    module: str
    extra: str
    help: str


COMMANDS = {
    "plan": Command("uellm.cli.plan", "", "plan an LLMService: its GPUs, the layers on each, and the reasons"),
    "place": Command("uellm.cli.place", "", "run the layer-placement solver on one instance"),
    "model": Command("uellm.cli.model", "", "show the bytes of each layer of a model"),
    "inspect": Command(
        "uellm.cli.inspect", "controller", "look a model up and serve what was found (runs in the inspection pod)"
    ),
    "fetch": Command(
        "uellm.cli.fetch", "controller", "copy a model's files from a hub to a directory (runs in the download pod)"
    ),
    "calibrate": Command("uellm.cli.calibrate", "", "fit the step-time model of an engine to measured steps"),
    "predict": Command("uellm.cli.predict", "", "predict times and memory of engines under given loads"),
    "crds": Command("uellm.cli.crds", "", "print the CustomResourceDefinitions"),
    "profile": Command("uellm.cli.profile", "profiler", "show this node's GPUs and their links"),
    "profiler": Command(
        "uellm.cli.profiler", "profiler", "keep a node's GPUNodeProfile up to date (runs in the DaemonSet)"
    ),
    "device-plugin": Command("uellm.cli.device_plugin", "profiler", "offer simulated GPUs to the kubelet"),
    "dra-driver": Command("uellm.cli.dra_driver", "profiler", "offer simulated GPUs to resource claims (DRA)"),
    "controller": Command("uellm.cli.controller", "controller", "run the operator"),
    "extender": Command("uellm.cli.extender", "extender", "run the scheduler extender"),
    "sidecar": Command("uellm.cli.sidecar", "sidecar", "run the SLO-aware queue in front of an engine"),
    "gateway": Command("uellm.cli.gateway", "gateway", "run the one endpoint for all LLMServices"),
    "run": Command("uellm.cli.run", "sidecar", "serve an LLMService on this machine, without a cluster"),
    "evaluate": Command("uellm.cli.evaluate", "evaluate", "compare policies on traces, or endpoints under load"),
    "cluster": Command("uellm_devcluster.cli", "", "run a real Kubernetes cluster on this machine"),
}


class Parser(argparse.ArgumentParser):
    """One line for bad arguments. The parsers of subcommands are of this class, too."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def plugin() -> int:
    """`kubectl uellm ...`: kubectl runs the program `kubectl-uellm` with the rest of its arguments."""
    return main(program="kubectl uellm")


def main(argv: list[str] | None = None, *, program: str = "uellm") -> int:
    """Run one command and return its exit status: 0 success, 1 failure, 2 bad input, 130 interrupted."""
    try:
        return _main(argv, program)
    except KeyboardInterrupt:
        return 130


def _main(argv: list[str] | None, program: str) -> int:
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv and argv[0] in COMMANDS else None
    parser = Parser(prog=program, description="UELLM: plan, place and serve large language models on Kubernetes")
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
        status = int(args.run(args) or 0)
        sys.stdout.flush()
        return status
    except UellmError as error:
        print(f"{program} {args.command}: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The reader (such as `| head`) closed the pipe.
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # What is still buffered would fail once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"{program} {args.command}: the output cannot be written: {error.strerror}", file=sys.stderr)
        return 1


def _missing(name: str, command: Command, error: ModuleNotFoundError) -> int:
    if command.extra and not (error.name or "").startswith("uellm"):
        remedy = f"install it: pip install 'uellm-operator[{command.extra}]'"
    elif (error.name or "").startswith("uellm_devcluster"):
        remedy = "it is part of the source checkout only: run `make setup` there"
    else:
        remedy = "the installation is damaged: install uellm-operator again"
    print(f"uellm {name}: the Python package {error.name!r} is missing; {remedy}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
