"""What the benchmark for a real GPU calls a miss."""

from __future__ import annotations

import on_gpu
import pytest

REACHED = {
    "rates": [{"figure": "bf16GigaflopsPerSecond", "profiler": 102.0, "direct": 100.0, "difference": 0.02}],
    "layers": [{"format": "bf16", "heldOutMedianError": 0.09}],
    "idle": {"coreShare": 0.001, "residentMegabytes": 60.0},
}


def test_figures_within_their_goals_are_no_miss():
    assert on_gpu.misses(REACHED) == []
    assert on_gpu.misses({**REACHED, "idle": {}}) == []


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"rates": [{**REACHED["rates"][0], "difference": -0.04}]}, "bf16GigaflopsPerSecond"),
        ({"layers": [{"format": "fp8", "heldOutMedianError": 0.11}]}, "layers in fp8"),
        ({"idle": {"coreShare": 0.006, "residentMegabytes": 60.0}}, "idle"),
        ({"idle": {"coreShare": 0.001, "residentMegabytes": 160.0}}, "idle"),
    ],
)
def test_each_goal_that_is_not_reached_is_named(change, missed):
    assert on_gpu.misses({**REACHED, **change}) == [missed]


def test_a_call_is_timed_by_as_many_calls_as_take_long_enough(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(on_gpu.time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += 0.004

    assert on_gpu.direct_s(None, "cpu", call) == pytest.approx(0.004)
    assert clock[0] >= on_gpu.DIRECT_S
