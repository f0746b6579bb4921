"""What differs on the CPU engine, where worker processes of this machine play the plan's simulated GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

# The engine's weights, its three or more Python processes and the sidecar live beside the KV cache.
KV_SHARE_OF_AVAILABLE_MEMORY = 0.25
# vLLM's CPU blocks hold 128 tokens; a tiny model needs no more, and a larger one says itself what it lacks.
LEAST_KV_BYTES = 64 << 20

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def thread_binding(cpus: Iterable[int], ranks: int) -> str:
    """VLLM_CPU_OMP_THREADS_BIND: each rank's CPUs, ranks separated by `|`.

    vLLM's own `auto` wants a NUMA node for every rank. Ranks share CPUs where there are fewer CPUs than ranks; where
    there is plenty, one is left to the engine's scheduler, which polls.

    >>> thread_binding([0, 1], 2), thread_binding([2, 5, 7], 4), thread_binding(range(8), 2)
    ('0|1', '2|5|7|2', '0,1,2|3,4,5,6')
    """
    usable = sorted(cpus)
    if len(usable) > 2 * ranks:
        usable = usable[:-1]
    if len(usable) < ranks:
        return "|".join(str(usable[rank % len(usable)]) for rank in range(ranks))
    edges = [rank * len(usable) // ranks for rank in range(ranks + 1)]
    return "|".join(",".join(str(cpu) for cpu in usable[start:end]) for start, end in pairwise(edges))


def kv_bytes(planned: int, available: int, ranks: int) -> int:
    """KV bytes a rank: the plan's, which are a GPU's, held to what this machine's memory has for all the ranks."""
    share = int(available * KV_SHARE_OF_AVAILABLE_MEMORY) // ranks
    return min(planned, max(share, LEAST_KV_BYTES))


def available_memory_bytes(*, meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """What this container can still take: the machine's available memory or what its cgroup leaves, the less."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2 here, or its limit is `max`
        return available
    return max(0, min(available, limit - used))


def default_args(args: Sequence[str], flags: Iterable[str]) -> list[str]:
    """The flags the CPU engine needs and the plan does not set. `flags` are those in `args`.

    float32: bfloat16 dies with SIGILL on AMX machines. Dynamo with the eager backend: no C++ compiler is needed and
    start-up is short; `--enforce-eager` crashes at the first request of a pipeline.
    """
    present = set(flags)
    added: list[str] = []
    if "--dtype" not in present or _value(args, "--dtype") == "auto":
        added += ["--dtype", "float32"]
    if not present & {"-cc", "--compilation-config", "--enforce-eager", "--optimization-level"}:
        added += ["-cc.mode=2", "-cc.backend=eager"]
    return added


def _value(args: Sequence[str], flag: str) -> str:
    for index, argument in enumerate(args):
        if argument.startswith(flag + "="):
            return argument.split("=", 1)[1]
        if argument == flag and index + 1 < len(args):
            return args[index + 1]
    return ""
