"""How much memory a GPU has, and how much of it is free.

An integrated GPU has none of its own: it uses the machine's, and NVML gives no figures, or zeros. Then the kernel's
count. What programs on the node use of it, no engine gets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from uellm.profiler.nvml_library import NOT_SUPPORTED, ask

MEMINFO = Path("/proc/meminfo")
_INTEGRATED = ("GB10",)
_GIB = 2**30


class GpuMemory(NamedTuple):
    """In bytes."""

    total: int
    free: int
    unified: bool = False
    """It is the machine's."""


def is_integrated(product: str) -> bool:
    """Whether a GPU of this name has the machine's memory in place of its own."""
    return any(name in product for name in _INTEGRATED)


def gpu_memory(nvml: Any, part: Any, meminfo: Path = MEMINFO) -> GpuMemory:
    """Of a GPU, or of a MIG slice of it. Raises NVMLError where nothing tells."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(part)
    except nvml.NVMLError as error:
        host = _machine_memory(nvml, part, meminfo) if error.value == NOT_SUPPORTED else None
        if host is None:
            raise
        return host
    host = None if memory.total else _machine_memory(nvml, part, meminfo)
    return host or GpuMemory(memory.total, memory.free)


def _machine_memory(nvml: Any, part: Any, meminfo: Path) -> GpuMemory | None:
    """The machine's memory where it is that of an integrated GPU; else None."""
    product = ask(nvml, nvml.nvmlDeviceGetName, part) or ""
    if not is_integrated(product):
        return None
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError, IndexError):
        return None
    # The kernel's total differs by some kilobytes from machine to machine, and equal nodes have to look equal.
    total -= total % _GIB
    return GpuMemory(total, min(total, available), unified=True)
