"""Writes the placement report: what this pod's engine really runs on, for the sidecar and the controller."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uellm.placement_report import LOG_PREFIX, BoundDevice, LaunchFailure, PlacementReport

if TYPE_CHECKING:  # these need numpy, and a missing numpy has to be reported
    from uellm.launcher.command import EngineCommand
    from uellm.launcher.devices import FoundDevices
    from uellm.planner.handover.device_facts import DeviceFacts
    from uellm.planner.handover.late_binding import Binding
    from uellm.planner.handover.plan_document import PlanDocument

TERMINATION_LOG = Path("/dev/termination-log")


def started(
    document: PlanDocument,
    advice: DeviceFacts,
    plan_hash: str,
    found: FoundDevices,
    binding: Binding,
    command: EngineCommand,
) -> PlacementReport:
    """The report of a binding that succeeded."""
    return PlacementReport(
        **_identity(command.environment),
        plan_hash=plan_hash,
        source=found.source,
        platform=document.platform,
        devices=tuple(BoundDevice(device.uuid, device.product, device.memory_bytes) for device in binding.devices),
        layers=binding.layers,
        tensor=binding.tensor,
        pipeline=binding.pipeline,
        planned=advice.planned,
        env=command.settings,
        argv=command.argv,
    )


def failed(environment: Mapping[str, str], plan_hash: str, error: LaunchFailure) -> PlacementReport:
    """The report of a launch that failed."""
    return PlacementReport(**_identity(environment), plan_hash=plan_hash, error=error)


def _identity(environment: Mapping[str, str]) -> dict[str, Any]:
    return {"pod": environment.get("POD_NAME", ""), "node": environment.get("NODE_NAME", "")}


def write(path: Path, report: PlacementReport) -> None:
    """Write the report so that no reader sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    # The sidecar is another container, and may run as another user.
    draft.chmod(0o644)
    os.replace(draft, path)


def fail(path: Path, report: PlacementReport, *, termination_log: Path = TERMINATION_LOG) -> None:
    """Report a failure wherever people look for one: the report, standard error, the container's status."""
    assert report.error is not None
    line = report.error.to_line()
    print(line, file=sys.stderr, flush=True)
    try:
        write(path, report)
    except OSError as problem:
        print(f"{LOG_PREFIX}the placement report cannot be written: {problem}", file=sys.stderr, flush=True)
    if termination_log.exists():
        try:
            termination_log.write_text(line + "\n")
        except OSError as problem:
            print(f"{LOG_PREFIX}{termination_log} cannot be written: {problem}", file=sys.stderr, flush=True)
