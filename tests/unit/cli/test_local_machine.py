from __future__ import annotations

import json
from pathlib import Path

import pytest

from uellm.cli.local import machine
from uellm.errors import BadInput, CannotBeDone
from uellm.profiler.sample import NVML, NoGPUs, Sample

GPU = {"index": 0, "uuid": "GPU-a", "product": "NVIDIA L4", "memoryBytes": 24 << 30}
OTHER = {"index": 1, "uuid": "GPU-b", "product": "NVIDIA T4", "memoryBytes": 16 << 30}


class Driver:
    """A source with a given answer."""

    def __init__(self, answer: Sample | Exception) -> None:
        self._answer = answer

    def sample(self) -> Sample:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def profile(tmp_path: Path, **status) -> str:
    document = {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeProfile",
        "metadata": {"name": "desk"},
        "status": {"source": "NVML", "devices": [GPU, OTHER], **status},
    }
    path = tmp_path / "profile.yaml"
    path.write_text(json.dumps(document))
    return str(path)


def test_the_drivers_gpus_are_planned_on_except_those_that_others_compute_on():
    found = machine.this_machine(Driver(Sample(NVML, (GPU, OTHER), busy=frozenset({"GPU-a"}))))
    [offer] = found.offers
    assert offer.free == ("GPU-b",)
    assert not offer.node.simulated
    assert "2 GPUs of this machine, 1 of them busy and not used: NVIDIA L4, NVIDIA T4" in found.description


@pytest.mark.parametrize("answer", [NoGPUs("NoDriver", "no driver is loaded"), Sample(NVML, ())])
def test_without_a_gpu_the_cpu_is_one_device_and_the_description_says_so(answer):
    found = machine.this_machine(Driver(answer))
    [offer] = found.offers
    [device] = offer.node.devices
    assert offer.free == (device.uuid,)
    assert offer.node.simulated
    assert 0 < device.memory_bytes < machine.available_memory_bytes()
    assert found.description.startswith("no GPU: ")
    assert "The CPU is used: " in found.description


def test_a_machine_with_neither_gpu_nor_memory_cannot_serve(monkeypatch):
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 200 << 20)
    with pytest.raises(CannotBeDone, match="200 MiB of memory available"):
        machine.this_machine(Driver(NoGPUs("NoDriver", "no driver is loaded")))


def test_described_gpus_are_simulated_whatever_the_description_says(tmp_path):
    found = machine.described_machine(profile(tmp_path))
    [offer] = found.offers
    assert offer.node.name == "desk"
    assert offer.node.simulated
    assert offer.free == ("GPU-a", "GPU-b")
    assert "simulated on this machine's CPU" in found.description


def test_a_profile_keeps_its_source_and_what_it_excludes(tmp_path):
    path = Path(profile(tmp_path))
    document = json.loads(path.read_text()) | {"spec": {"excludedDevices": [{"uuid": "GPU-a", "reason": "display"}]}}
    path.write_text(json.dumps(document))
    [offer] = machine.profiled_machine(str(path)).offers
    assert not offer.node.simulated
    assert offer.free == ("GPU-b",)


def test_a_file_without_a_profile_is_named(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("{}")
    with pytest.raises(BadInput, match=r"empty\.yaml: must hold the GPUNodeProfile of this machine; it holds 0"):
        machine.profiled_machine(str(path))


def test_available_memory_is_the_machines_or_what_the_cgroup_leaves(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 2000 kB\nMemAvailable:    1000 kB\n")
    assert machine.available_memory_bytes(meminfo=meminfo, cgroup=tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory_bytes(meminfo=meminfo, cgroup=tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert machine.available_memory_bytes(meminfo=meminfo, cgroup=tmp_path) == 3000
