"""This machine as a node: its GPUs, a description of simulated ones, or its CPU as one device."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from uellm.api import parse_profile, read_documents
from uellm.errors import BadInput, CannotBeDone
from uellm.hardware import Node
from uellm.planner.request import NodeOffer
from uellm.profiler.nvml import NVMLSource
from uellm.profiler.sample import SIMULATED, NoGPUs, Sample, Source
from uellm.profiler.simulated import SimulatedSource, described_name
from uellm.profiler.status import Seen, compose

# Resident memory of the engine's API server and scheduler with libraries, measured with vLLM 0.32 on a CPU. The plan
# counts the workers' memory.
ENGINE_PROCESSES_BYTES = 1 << 30

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


class LocalMachine(NamedTuple):
    """The node to plan on, and a sentence that describes it."""

    offers: tuple[NodeOffer, ...]
    description: str


def this_machine(source: Source | None = None) -> LocalMachine:
    """The GPUs that the driver shows, else the CPU. Raises CannotBeDone if neither can be used."""
    name = socket.gethostname()
    try:
        sample = (source or NVMLSource()).sample()
    except NoGPUs as none:
        return _cpu(name, str(none))
    if not sample.devices:
        return _cpu(name, "the driver shows no GPU")
    node = _node(name, sample)
    free = tuple(device.uuid for device in node.devices if device.usable and device.uuid not in sample.busy)
    busy = f", {len(sample.busy)} of them busy and not used" if sample.busy else ""
    return LocalMachine((NodeOffer(node, free),), f"{len(node.devices)} GPUs of this machine{busy}: {_products(node)}")


def described_machine(path: str) -> LocalMachine:
    """The GPUs that a file describes, simulated on this machine's CPU. Raises BadInput."""
    name = described_name(path) or socket.gethostname()
    node = _node(name, SimulatedSource(path, name).sample())
    description = f"{len(node.devices)} GPUs of {path}, simulated on this machine's CPU: {_products(node)}"
    return LocalMachine((_offer(node),), description)


def profiled_machine(path: str) -> LocalMachine:
    """The machine as described by the output of `uellm profile -o yaml`. Raises BadInput."""
    documents = [document for document in read_documents(path) if document.get("kind") == "GPUNodeProfile"]
    if len(documents) != 1:
        raise BadInput(path, f"must hold the GPUNodeProfile of this machine; it holds {len(documents)}")
    parse_profile(documents[0])
    node = Node.from_profile(documents[0])
    return LocalMachine((_offer(node),), f"{len(node.devices)} GPUs of {path}: {_products(node)}")


def available_memory_bytes(*, meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Memory that this process can still use: the machine's or its cgroup's, whichever is less."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2 here, or its limit is `max`
        return available
    return max(0, min(available, limit - used))


def _cpu(name: str, why: str) -> LocalMachine:
    memory = available_memory_bytes() - ENGINE_PROCESSES_BYTES
    if memory <= 0:
        raise CannotBeDone(
            f"no GPU ({why}) and {(memory + ENGINE_PROCESSES_BYTES) >> 20} MiB of memory available, of which the "
            f"engine alone needs {ENGINE_PROCESSES_BYTES >> 20} MiB: free some memory"
        )
    cpus = len(os.sched_getaffinity(0))
    device = {"index": 0, "uuid": f"CPU-{name}", "product": f"CPU, {cpus} cores", "memoryBytes": memory}
    node = _node(name, Sample(source=SIMULATED, devices=(device,)))
    description = f"no GPU: {why}. The CPU is used: {cpus} cores, {memory >> 20} MiB of memory"
    return LocalMachine((_offer(node),), description)


def _node(name: str, sample: Sample) -> Node:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Node.from_profile(_profile(name, compose(Seen(sample), {}, now, observed_at=now)))


def _profile(name: str, status: Mapping[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": status}


def _offer(node: Node) -> NodeOffer:
    return NodeOffer(node, tuple(device.uuid for device in node.devices if device.usable))


def _products(node: Node) -> str:
    return ", ".join(dict.fromkeys(device.product for device in node.devices))
