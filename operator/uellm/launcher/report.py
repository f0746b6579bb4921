"""The placement report: what this pod's engine really runs on, read by the sidecar and, through it, the controller."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uellm.launcher.command import EngineCommand
from uellm.launcher.devices import FoundDevices
from uellm.planner.handover.late_binding import Binding

TERMINATION_LOG = Path("/dev/termination-log")


def placement(
    document: Mapping[str, Any], plan_hash: str, found: FoundDevices, binding: Binding, command: EngineCommand
) -> dict[str, Any]:
    """The report of a binding that succeeded: devices in rank order."""
    facts = document["devices"]
    return {
        **identity(command.environment, plan_hash),
        "source": found.source,
        "platform": document["platform"],
        "devices": [
            {
                "uuid": uuid,
                "product": facts[uuid].get("product", ""),
                "memoryBytes": int(facts[uuid]["memoryBytes"]),
            }
            for uuid in binding.order
        ],
        "layers": list(binding.layers),
        "tensor": binding.tensor,
        "pipeline": binding.pipeline,
        "planned": [uuid for stage in document["plan"]["stages"] for uuid in stage["devices"]],
        "env": dict(command.settings),
        "argv": list(command.argv),
    }


def identity(environment: Mapping[str, str], plan_hash: str) -> dict[str, str]:
    """Which pod this is, and by which plan it went."""
    return {
        "pod": environment.get("POD_NAME", ""),
        "node": environment.get("NODE_NAME", ""),
        "planHash": plan_hash,
    }


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report so that no reader sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(report, indent=1) + "\n")
    # The sidecar is another container, maybe under another user.
    draft.chmod(0o644)
    os.replace(draft, path)


def fail(path: Path | None, report: Mapping[str, Any], *, termination_log: Path = TERMINATION_LOG) -> None:
    """Tell a failure in every place where one is looked for: the report, standard error, the container's status."""
    error = report["error"]
    line = f"uellm launcher: {error['reason']}: {error['message']}"
    print(line, file=sys.stderr, flush=True)
    if path is not None:
        try:
            write(path, report)
        except OSError as problem:
            print(f"uellm launcher: the placement report cannot be written: {problem}", file=sys.stderr, flush=True)
    if termination_log.exists():
        try:
            termination_log.write_text(line + "\n")
        except OSError as problem:
            print(f"uellm launcher: {termination_log} cannot be written: {problem}", file=sys.stderr, flush=True)
