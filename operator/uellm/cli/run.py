"""`uellm run`: serves an LLMService on this machine without a cluster: plan, launcher, vLLM and sidecar."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from uellm.cli.local.machine import LocalMachine, described_machine, profiled_machine, this_machine
from uellm.cli.local.prepare import Prepared, prepare
from uellm.cli.local.serve import choose_ports, serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("-f", "--file", required=True, metavar="SERVICE.yaml", help="file with the LLMService")
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--profiles", metavar="FILE", help="GPUNodeProfile of this machine (default: detect its GPUs)")
    devices.add_argument(
        "--simulate", metavar="FILE", help="GPUNodeProfile of simulated GPUs; the CPU computes for them"
    )
    parser.add_argument("--port", type=_port, default=8000, help="port of the endpoint on 127.0.0.1 (default: 8000)")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM. Raises BadInput, PlanError, or CannotBeDone if a process ends by itself."""
    ports = choose_ports(args.port)
    machine = _machine(args)
    _say("uellm", machine.description)
    prepared = prepare(args.file, machine)
    for line in _decided(prepared):
        _say("uellm", line)
    with tempfile.TemporaryDirectory(prefix="uellm-run-") as directory:
        asyncio.run(serve(prepared, Path(directory), ports, _say))
    return 0


def _machine(args: argparse.Namespace) -> LocalMachine:
    if args.simulate:
        return described_machine(args.simulate)
    return profiled_machine(args.profiles) if args.profiles else this_machine()


def _decided(prepared: Prepared) -> list[str]:
    plan = prepared.plan
    layers = ",".join(str(count) for count in plan.layers)
    shape = f"plan: {plan.gpus_per_replica} = tp{plan.tensor} x pp{plan.pipeline}, layers {layers}"
    return [
        f"{shape} on {', '.join(plan.devices)}",
        *(f"assumed: {each}" for each in plan.assumptions),
        *prepared.notes,
    ]


def _say(name: str, line: str) -> None:
    print(f"{name:<7} | {line}", flush=True)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)
