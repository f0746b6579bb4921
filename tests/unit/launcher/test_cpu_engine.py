from __future__ import annotations

import pytest

from uellm.launcher.cpu import LEAST_KV_BYTES, available_memory_bytes, kv_bytes, thread_binding


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


def test_a_small_machine_still_gets_the_least_kv_cache():
    assert kv_bytes(1 << 40, 100 << 20, 4) == LEAST_KV_BYTES


def test_available_memory_is_the_machines_where_no_limit_is_set(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 2000 kB\nMemAvailable:    1000 kB\n")
    assert available_memory_bytes(meminfo=meminfo, cgroup=tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory_bytes(meminfo=meminfo, cgroup=tmp_path) == 1000 * 1024


def test_available_memory_is_what_the_cgroup_leaves(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable:    1000 kB\n")
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert available_memory_bytes(meminfo=meminfo, cgroup=tmp_path) == 3000
