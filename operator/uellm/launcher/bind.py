"""From a plan and the container's devices to the engine's command line: everything that needs the planner's solver."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from uellm.documents import UnreadableDocument
from uellm.errors import PlanError
from uellm.launcher.command import EngineCommand, engine_command
from uellm.launcher.compiled import compile_cache
from uellm.launcher.devices import FoundDevices, find_devices
from uellm.launcher.engine_version import engine_version
from uellm.launcher.group.part import GroupPart
from uellm.placement_report import LOG_PREFIX
from uellm.planner.handover import late_binding
from uellm.planner.handover.device_facts import NO_FACTS, DeviceFacts
from uellm.planner.handover.late_binding import Binding
from uellm.planner.handover.plan_document import PlanDocument
from uellm.pod_interface import COMPILED_DIRECTORY


def read_advice(path: Path) -> DeviceFacts:
    """devices.json; nothing where it is missing or of another version, for an engine must start without it."""
    try:
        return DeviceFacts.from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return NO_FACTS
    except (OSError, UnreadableDocument) as error:
        print(f"{LOG_PREFIX}going on without {path}: {error}", file=sys.stderr, flush=True)
        return NO_FACTS


def prepare(
    document: PlanDocument,
    advice: DeviceFacts,
    *,
    listen: tuple[str, int],
    environment: Mapping[str, str],
    compiled: Path = Path(COMPILED_DIRECTORY),
) -> tuple[FoundDevices, Binding, EngineCommand]:
    """Find the devices, bind the layers to them, work out the command. Raises PlanError."""
    found = find_devices(environment, simulated=document.platform == "cpu")
    binding = late_binding.bind(document, found.uuids, advice=advice, seen=found.facts, claimed=found.allocated)
    check(binding, found.uuids, layers=len(document.task.layer_bytes))
    return found, binding, command_of(document, binding, listen=listen, environment=environment, compiled=compiled)


def command_of(
    document: PlanDocument,
    binding: Binding,
    *,
    listen: tuple[str, int],
    environment: Mapping[str, str],
    compiled: Path = Path(COMPILED_DIRECTORY),
    part: GroupPart | None = None,
) -> EngineCommand:
    """The engine's command for a binding. `part`: this pod's in an engine that spans nodes. Raises PlanError."""
    place, problem = compile_cache(compiled, engine_version(), (device.product for device in binding.devices))
    if problem:
        print(f"{LOG_PREFIX}compiled code is not kept: {problem}", file=sys.stderr, flush=True)
    return engine_command(
        document.engine,
        binding,
        platform=document.platform,
        listen=listen,
        environment=environment,
        cpus=os.sched_getaffinity(0),
        compiled=place,
        part=part,
    )


def check(binding: Binding, uuids: Sequence[str], *, layers: int) -> None:
    """Refuse a partition that vLLM would accept, and a minute later crash or serve wrong text with."""
    problem = ""
    if sorted(binding.order) != sorted(uuids):
        problem = f"it uses {', '.join(binding.order)} and the container has {', '.join(uuids)}"
    elif binding.tensor * binding.pipeline != len(binding.order):
        problem = f"tensor {binding.tensor} x pipeline {binding.pipeline} is not {len(binding.order)} devices"
    elif len(binding.layers) != binding.pipeline:
        problem = f"{len(binding.layers)} parts for {binding.pipeline} stages"
    elif min(binding.layers) < 1 or sum(binding.layers) != layers:
        problem = f"parts {list(binding.layers)} are not {layers} layers with at least one a stage"
    if problem:
        raise PlanError("BadPartition", f"the binding is not valid: {problem}")


def announce(found: FoundDevices, binding: Binding, command: EngineCommand) -> None:
    """Log what was decided, on standard error."""
    parts = ",".join(str(count) for count in binding.layers)
    print(
        f"{LOG_PREFIX}devices by {found.source}, in rank order: {', '.join(binding.order)}; layers {parts}; "
        f"tensor {binding.tensor}, pipeline {binding.pipeline}",
        file=sys.stderr,
    )
    print(f"{LOG_PREFIX}exec " + json.dumps(list(command.argv)), file=sys.stderr, flush=True)
