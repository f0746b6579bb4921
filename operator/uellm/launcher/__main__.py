"""The launcher's command line: bind and become the engine, or drain."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uellm.errors import PlanError, UellmError
from uellm.launcher import report
from uellm.launcher.command import EngineCommand, engine_command
from uellm.launcher.devices import FoundDevices, find_devices
from uellm.launcher.drain import drain
from uellm.launcher.init import stand_by
from uellm.planner.handover import late_binding
from uellm.planner.handover.late_binding import Binding


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns only where there is no engine to become: 1 it cannot be launched, 2 bad command line."""
    args = _parser().parse_args(argv)
    if args.drain:
        return drain(args.drain)
    stand_by()
    environment = dict(os.environ)
    plan_hash = ""
    try:
        content = _read(args.plan)
        plan_hash = hashlib.sha256(content).hexdigest()
        document = _parse(content, args.plan)
        found, binding, command = prepare(document, listen=args.listen, environment=environment)
        report.write(args.placement, report.placement(document, plan_hash, found, binding, command))
        _announce(found, binding, command)
        os.execve(command.argv[0], command.argv, dict(command.environment))
    except UellmError as error:
        reason, message = getattr(error, "reason", "BadPlan"), str(error)
    except OSError as error:
        reason, message = "LaunchFailed", str(error)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        # The plan is written by the controller alone; a shape we cannot read is a mix of versions.
        reason, message = "BadPlan", f"{args.plan}: {type(error).__name__}: {error}; is the launcher image too old?"
    failure = {**report.identity(environment, plan_hash), "error": {"reason": reason, "message": message}}
    report.fail(args.placement, failure)
    return 1


def prepare(
    document: Mapping[str, Any], *, listen: tuple[str, int], environment: Mapping[str, str]
) -> tuple[FoundDevices, Binding, EngineCommand]:
    """Find the devices, bind the layers to them, work out the command. Raises PlanError."""
    found = find_devices(environment, simulated=document["platform"] == "cpu")
    binding = late_binding.bind(document, found.uuids)
    check(binding, found, layers=int(document["instance"]["layers"]))
    cpus = os.sched_getaffinity(0)
    return found, binding, engine_command(document, binding, listen=listen, environment=environment, cpus=cpus)


def check(binding: Binding, found: FoundDevices, *, layers: int) -> None:
    """Refuse a partition that vLLM would take and then crash on, or serve wrong text with, a minute later."""
    problem = ""
    if sorted(binding.order) != sorted(found.uuids):
        problem = f"it uses {', '.join(binding.order)} and the container has {', '.join(found.uuids)}"
    elif binding.tensor * binding.pipeline != len(binding.order):
        problem = f"tensor {binding.tensor} x pipeline {binding.pipeline} is not {len(binding.order)} devices"
    elif len(binding.layers) != binding.pipeline:
        problem = f"{len(binding.layers)} parts for {binding.pipeline} stages"
    elif min(binding.layers) < 1 or sum(binding.layers) != layers:
        problem = f"parts {list(binding.layers)} are not {layers} layers with at least one a stage"
    if problem:
        raise PlanError("BadPartition", f"the binding is not valid: {problem}")


def _announce(found: FoundDevices, binding: Binding, command: EngineCommand) -> None:
    parts = ",".join(str(count) for count in binding.layers)
    print(
        f"uellm launcher: devices by {found.source}, in rank order: {', '.join(binding.order)}; layers {parts}; "
        f"tensor {binding.tensor}, pipeline {binding.pipeline}",
        file=sys.stderr,
    )
    print("uellm launcher: exec " + json.dumps(list(command.argv)), file=sys.stderr, flush=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanError("BadPlan", f"{path}: {error.strerror}: is the service's ConfigMap mounted there?") from error


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise PlanError("BadPlan", f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("version") != 1:
        version = document.get("version") if isinstance(document, dict) else None
        raise PlanError("BadPlan", f"{path}: version {version!r}; this launcher reads version 1: use a newer one")
    return document


def _listen(value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{value!r} is not HOST:PORT")
    return host, int(port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launcher", description="Binds a plan to this container's devices; runs vLLM")
    parser.add_argument("--plan", type=Path, default=Path("/etc/uellm/plan.json"), help="plan.json of the ConfigMap")
    parser.add_argument("--placement", type=Path, default=Path("/run/uellm/placement.json"), help="report to write")
    parser.add_argument("--listen", type=_listen, default=("127.0.0.1", 8001), metavar="HOST:PORT", help="the engine's")
    parser.add_argument("--drain", metavar="URL", help="ask the sidecar at URL to drain, wait, and do nothing else")
    return parser


if __name__ == "__main__":
    sys.exit(main())
