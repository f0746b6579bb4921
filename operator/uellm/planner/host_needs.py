"""What an engine needs of its node's CPUs and memory, beside its GPUs. Pure.

On GPUs each rank is a process with a CUDA context; its part of the weights passes through pinned host memory in pieces.
The file's own pages are page cache, which the kernel takes back. On the CPU engine, which stands in for simulated GPUs,
host memory is what the device's would be.
"""

from __future__ import annotations

from uellm.planner.handover.publish import kv_factor
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan

GIB = 1 << 30
# API server and engine core: two Python processes with torch. 2 GB were resident in a vLLM 0.32 with a tiny model.
_FRONT_BYTES = 2 * GIB
# A CUDA process with torch and NCCL.
_RANK_BYTES = 2 * GIB
# The pieces in which weights are loaded: at most one file of a sharded checkpoint (Hugging Face writes 5 GB).
_PIECE_BYTES = 5 * 10**9
# NCCL and vLLM's message queues in /dev/shm.
_SHARED_BYTES = GIB // 2
_CPU_RANK_BYTES = GIB // 2
_FRONT_MILLICORES, _RANK_MILLICORES = 500, 500
_CPU_MILLICORES = 100


def host_memory_bytes(plan: Plan, request: PlanRequest, *, simulated: bool) -> int:
    """Host memory of a replica."""
    ranks, weight_bytes = plan.gpus_per_replica, request.architecture.weight_bytes
    if simulated:
        # Weights may be widened to float32.
        return _FRONT_BYTES + ranks * (_CPU_RANK_BYTES + plan.kv_cache_bytes * kv_factor(request)) + 2 * weight_bytes
    piece_bytes = min(weight_bytes // max(1, ranks), _PIECE_BYTES)
    return _FRONT_BYTES + ranks * _RANK_BYTES + piece_bytes + _SHARED_BYTES


def host_millicores(plan: Plan, *, simulated: bool) -> int:
    """Thousandths of CPU cores that a replica cannot do without; it uses more where there is more."""
    front, rank = (_CPU_MILLICORES, _CPU_MILLICORES) if simulated else (_FRONT_MILLICORES, _RANK_MILLICORES)
    return front + plan.gpus_per_replica * rank
