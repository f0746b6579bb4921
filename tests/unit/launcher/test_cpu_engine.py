from __future__ import annotations

import pytest

from uellm.launcher.cpu import thread_binding


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
