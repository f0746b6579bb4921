"""Memory of a GPU that no pod explains."""

from __future__ import annotations

import pytest

from helpers.sizes import GIB
from uellm.profiler.outside_memory import OutsideMemory
from uellm.profiler.sample import Sample

TOTAL = 80 * GIB


@pytest.fixture
def found():
    """`found(3, 3, 3)`: what is held after samples with so many GiB in use; None: a pod has the GPU."""
    outside = OutsideMemory()

    def look(*used: float | None) -> float:
        for each in used:
            device = {"uuid": "GPU-a", "index": 0, "memoryBytes": TOTAL}
            in_use = {} if each is None else {"GPU-a": int(each * GIB)}
            outside.look(Sample("NVML", (device,), used_bytes=in_use), set() if each is not None else {"GPU-a"})
        return outside.bytes.get("GPU-a", 0) / GIB

    return look


def test_it_counts_when_it_stays_and_is_rounded_up(found):
    assert found(9.2, 9.2) == 0
    assert found(9.2) == 10


def test_what_a_pod_leaves_behind_for_a_moment_does_not_count(found):
    assert found(None, 70, 70, 0, 0, 0) == 0
    assert found(70, 70, None, 70, 70, None) == 0


def test_the_lowest_of_the_last_samples_counts(found):
    assert found(20, 8, 30) == 8


def test_what_an_engine_leaves_unused_anyway_does_not_count(found):
    assert found(4, 4, 4) == 0
    assert found(4.1, 4.1, 4.1) == 5


def test_a_use_that_goes_up_and_down_a_little_changes_nothing(found):
    assert found(9.5, 9.5, 9.5) == 10
    assert found(8.4, 9.9, 8.1, 8.1, 8.1) == 10
    assert found(10.2, 10.2, 10.2) == 11
    assert found(7, 7, 7) == 7


def test_it_ends_when_the_memory_is_free_again(found):
    assert found(5, 5, 5) == 5
    assert found(0, 0, 0) == 0
    assert found(4.5, 4.5, 4.5) == 5
    assert found(0.1, 0.1, 0.1) == 0


def test_while_a_pod_has_the_gpu_what_was_found_last_stays(found):
    assert found(9, 9, 9, None, None, None) == 9


def test_a_new_process_goes_on_from_the_profile():
    outside = OutsideMemory()
    device = {"uuid": "GPU-a", "index": 2, "memoryBytes": TOTAL, "memoryHeldBytes": 9 * GIB}
    outside.adopt({"devices": [device, {"uuid": "GPU-b"}]})
    assert outside.bytes == {"GPU-a": 9 * GIB}
    assert outside.sentence(Sample("NVML", (device,))) == (
        "9 GiB of GPU 2 in use by no pod: plans do without (see nvidia-smi on the node)"
    )
    assert outside.sentence(Sample("NVML", ())) == ""


def test_what_the_system_uses_of_an_integrated_gpu_moves_in_larger_steps_and_is_told_in_its_own_words():
    outside = OutsideMemory()
    device = {"uuid": "GPU-a", "index": 0, "product": "NVIDIA GB10", "memoryBytes": 119 * GIB}

    def held(*used: float) -> float:
        for each in used:
            outside.look(Sample("NVML", (device,), used_bytes={"GPU-a": int(each * GIB)}), set())
        return outside.bytes.get("GPU-a", 0) / GIB

    assert held(5, 5, 5) == 0
    assert held(9, 9, 9) == 12
    assert held(5, 5, 5, 11, 7, 12, 12, 12) == 12
    assert outside.sentence(Sample("NVML", (device,))) == (
        "12 GiB of GPU 0, which has the machine's memory, in use by the system: plans do without"
    )
    assert held(12.5, 12.5, 12.5) == 16
    assert held(115.5, 119, 119, 119) == 119
