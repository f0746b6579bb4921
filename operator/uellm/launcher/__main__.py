"""The launcher's command line: bind and become the engine, or drain."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from uellm.errors import PlanError, UellmError
from uellm.launcher import report
from uellm.launcher.command import EngineCommand, engine_command
from uellm.launcher.devices import FoundDevices, find_devices
from uellm.launcher.drain import drain
from uellm.launcher.init import stand_by
from uellm.planner.handover import late_binding
from uellm.planner.handover.late_binding import Binding
from uellm.planner.handover.placement_report import LaunchFailure
from uellm.planner.handover.plan_document import PlanDocument


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
        document = PlanDocument.from_json(content, str(args.plan))
        found, binding, command = prepare(document, listen=args.listen, environment=environment)
        report.write(args.placement, report.started(document, plan_hash, found, binding, command))
        _announce(found, binding, command)
        os.execve(command.argv[0], command.argv, dict(command.environment))
    except UellmError as error:
        reason, message = getattr(error, "reason", "BadPlan"), str(error)
    except OSError as error:
        reason, message = "LaunchFailed", str(error)
    report.fail(args.placement, report.failed(environment, plan_hash, LaunchFailure(reason, message)))
    return 1


def prepare(
    document: PlanDocument, *, listen: tuple[str, int], environment: Mapping[str, str]
) -> tuple[FoundDevices, Binding, EngineCommand]:
    """Find the devices, bind the layers to them, work out the command. Raises PlanError."""
    found = find_devices(environment, simulated=document.platform == "cpu")
    binding = late_binding.bind(document, found.uuids)
    check(binding, found, layers=len(document.task.layer_bytes))
    command = engine_command(
        document.engine,
        binding,
        platform=document.platform,
        listen=listen,
        environment=environment,
        cpus=os.sched_getaffinity(0),
    )
    return found, binding, command


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
