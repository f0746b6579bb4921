"""What an engine needs of its node's CPUs and memory, beside its GPUs. Pure.

On GPUs each rank is a process with a CUDA context; its part of the weights passes through pinned host memory in pieces.
The file's own pages are page cache, which the kernel takes back. On the CPU engine, which stands in for simulated GPUs,
host memory takes the place of device memory.
"""

from __future__ import annotations

from uellm.planner import constants as c
from uellm.planner.handover.publish import kv_factor
from uellm.planner.memory.adapters import adapter_bytes
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan


def host_memory_bytes(plan: Plan, request: PlanRequest, *, simulated: bool) -> int:
    """Host memory of a pod: of a replica, or of its part on one node."""
    ranks = plan.gpus_per_replica // plan.nodes_per_replica
    weight_bytes = request.architecture.weight_bytes // plan.nodes_per_replica
    # Each rank keeps whole adapters beside its slots: it cuts them when they are copied into one.
    adapters = ranks * adapter_bytes(request.architecture, plan.adapters, 1).total
    if simulated:
        # Weights may be widened to float32.
        return (
            c.HOST_FRONT_BYTES
            + ranks * (c.HOST_CPU_RANK_BYTES + plan.kv_cache_bytes * kv_factor(request))
            + 2 * weight_bytes
            + 2 * adapters
        )
    tables = request.architecture.host_bytes // plan.nodes_per_replica
    piece_bytes = min(weight_bytes // max(1, ranks), c.HOST_PIECE_BYTES)
    return c.HOST_FRONT_BYTES + ranks * c.HOST_RANK_BYTES + piece_bytes + c.HOST_SHARED_BYTES + adapters + tables


def host_millicores(plan: Plan, *, simulated: bool) -> int:
    """Thousandths of CPU cores that a pod cannot do without; it uses more where there is more."""
    front, rank = (
        (c.HOST_CPU_MILLICORES, c.HOST_CPU_MILLICORES)
        if simulated
        else (c.HOST_FRONT_MILLICORES, c.HOST_RANK_MILLICORES)
    )
    return front + plan.gpus_per_replica // plan.nodes_per_replica * rank
