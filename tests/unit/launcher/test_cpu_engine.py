from __future__ import annotations

import pytest

from uellm.launcher.cpu import default_args, thread_binding
from uellm.planner.vllm.flags import UserArgs


@pytest.mark.parametrize(
    ("cpus", "ranks", "binding"),
    [
        ([0], 1, "0"),
        ([0, 1], 1, "0,1"),
        ([0, 1], 2, "0|1"),
        ([3, 1], 2, "1|3"),
        ([0, 1], 3, "0|1|0"),
        ([0, 1, 2, 3], 2, "0,1|2,3"),
        ([0, 1, 2, 3, 4], 2, "0,1|2,3"),
        ([0, 1, 2], 1, "0,1"),
    ],
)
def test_every_rank_gets_cpus_the_process_may_use(cpus, ranks, binding):
    assert thread_binding(cpus, ranks) == binding


@pytest.mark.parametrize(
    ("planned", "added"),
    [((), True), (("--kv-cache-memory-bytes", "1G"), False), (("--gpu-memory-utilization", "0.5"), False)],
)
def test_a_model_without_a_kv_cache_does_not_reserve_the_machines_memory(planned, added):
    assert ("--kv-cache-memory-bytes" in default_args(UserArgs(planned))) is added
