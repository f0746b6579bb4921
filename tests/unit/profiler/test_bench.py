"""Which GPU or link is measured next, and which results are stored."""

from __future__ import annotations

import sys

import pytest

from uellm.profiler import bench
from uellm.profiler.sample import Sample

A, B = ({"index": index, "uuid": f"GPU-{name}", "powerLimitWatts": 300} for index, name in enumerate("ab"))
LINKS = ({"a": "GPU-a", "b": "GPU-b"}, {"a": "GPU-b", "b": "GPU-a"})
SAMPLE = Sample("NVML", (A, B), LINKS, "580.1")


def test_devices_are_measured_before_links_and_each_once():
    one, targets = bench.Bench(), []
    while (target := one.next_target(SAMPLE, {})) is not None:
        targets.append(target)
        one.record(target, {"figure": len(targets)}, "now")
    assert targets == [("GPU-a",), ("GPU-b",), ("GPU-a", "GPU-b"), ("GPU-b", "GPU-a")]
    assert one.devices["GPU-b"] == {"figure": 2, "measuredAt": "now"}
    assert one.links["GPU-a", "GPU-b"] == {"figure": 3}


def test_what_cannot_be_measured_is_tried_once():
    one = bench.Bench()
    one.record(("GPU-a",), None, "now")
    assert one.next_target(SAMPLE, {}) == ("GPU-b",)
    assert one.devices == {}


def test_allocated_busy_and_sliced_devices_are_not_measured():
    one = bench.Bench()
    assert one.next_target(SAMPLE, {"GPU-a": "uid-1"}) == ("GPU-b",)
    assert one.next_target(Sample("NVML", (A,), busy=frozenset({"GPU-a"})), {}) is None
    assert one.next_target(Sample("NVML", ({**A, "mig": True},)), {}) is None


def test_a_new_process_goes_on_with_the_figures_of_the_profile():
    status = {
        "source": "NVML",
        "driverVersion": "580.1",
        "devices": [{**A, "measured": {"bf16GigaflopsPerSecond": 5}}, B],
        "links": [{**LINKS[0], "kind": "PHB", "bytesPerSecond": 7}, {**LINKS[1], "kind": "PHB"}],
    }
    one = bench.Bench()
    one.adopt(status)
    one.check(SAMPLE)
    assert one.devices == {"GPU-a": {"bf16GigaflopsPerSecond": 5}}
    assert one.links == {("GPU-a", "GPU-b"): {"bytesPerSecond": 7}}
    assert one.next_target(SAMPLE, {}) == ("GPU-b",)


def test_described_figures_do_not_count_as_measured():
    one = bench.Bench()
    one.adopt({"source": "Simulated", "devices": [{**A, "measured": {"bf16GigaflopsPerSecond": 5}}]})
    assert one.devices == {}


@pytest.mark.parametrize(
    "changed",
    [
        Sample("NVML", (A, B), LINKS, "590.1"),
        Sample("NVML", ({**A, "powerLimitWatts": 200}, B), LINKS, "580.1"),
    ],
    ids=["another driver", "another power limit"],
)
def test_figures_are_measured_again_when_their_conditions_change(changed):
    one = bench.Bench()
    one.check(SAMPLE)
    for target in [("GPU-a",), ("GPU-b",), ("GPU-a", "GPU-b"), ("GPU-b", "GPU-a")]:
        one.record(target, {"figure": 1}, "now")
    one.check(SAMPLE)
    assert one.next_target(SAMPLE, {}) is None
    one.check(changed)
    assert one.next_target(changed, {}) == ("GPU-a",)
    assert "GPU-a" not in one.devices
    assert one.links == {}


async def test_figures_come_from_a_process_that_sees_only_the_target(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("""#!/bin/sh
echo "{\\"visible\\": \\"$CUDA_VISIBLE_DEVICES\\", \\"arguments\\": \\"$*\\"}"
""")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert await bench.run(("GPU-a", "GPU-b")) == {
        "visible": "GPU-a,GPU-b",
        "arguments": "-m uellm.profiler.measure GPU-a GPU-b",
    }


async def test_a_process_that_fails_says_why_in_its_last_line(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho first >&2; echo CUDA is out of memory >&2; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(bench.NotMeasured, match=r"^CUDA is out of memory$"):
        await bench.run(("GPU-a",))


async def test_a_process_that_hangs_is_ended(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(bench, "PROCESS_TIMEOUT_S", 0.05)
    with pytest.raises(bench.NotMeasured, match="not done"):
        await bench.run(("GPU-a",))
