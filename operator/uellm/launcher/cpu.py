"""What differs on the CPU engine, where each worker process takes the place of a simulated GPU."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from uellm.planner.vllm.flags import KV_CACHE_BYTES, UTILIZATION, UserArgs

NO_KV_CACHE_BYTES = 1 << 20
"""For a model that keeps no KV cache. Without a size the CPU engine asks for 92 % of the machine's memory at its start,
and ends where less is free (vllm/v1/worker/cpu_worker.py)."""


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


def default_args(planned: UserArgs) -> list[str]:
    """The flags the CPU engine needs, as far as the plan does not set them.

    float32: bfloat16 dies with SIGILL on AMX machines. Dynamo with the eager backend: no C++ compiler is needed and
    start-up is short; `--enforce-eager` crashes at the first request of a pipeline.
    """
    added: list[str] = []
    if planned.text("--dtype") in (None, "auto"):
        added += ["--dtype", "float32"]
    compiles = {"-cc", "--compilation-config", "--enforce-eager", "--optimization-level"}
    if not compiles & planned.flags and not any(flag.startswith("-O") for flag in planned.flags):
        added += ["-cc.mode=2", "-cc.backend=eager"]
    if not {KV_CACHE_BYTES, UTILIZATION} & planned.flags:
        added += [KV_CACHE_BYTES, str(NO_KV_CACHE_BYTES)]
    return added
