from __future__ import annotations

import os
from pathlib import Path

import pytest

from uellm.errors import PlanError
from uellm.launcher.devices import find_devices
from uellm.launcher.driver import parse_nvidia_smi, parse_query

TWO_GPUS = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aaaa-1)
GPU 1: NVIDIA L4 (UUID: GPU-bbbb-2)
"""
MIG = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-1)
  MIG 3g.20gb     Device  0: (UUID: MIG-1111)
  MIG 1g.5gb      Device  1: (UUID: MIG-2222)
GPU 1: NVIDIA H100 PCIe (UUID: GPU-bbbb-2)
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path):
    """Put a program named nvidia-smi on a PATH of its own; returns the environment that finds it."""

    def make(output: str, *, status: int = 0, stderr: str = "", figures: str = "") -> dict[str, str]:
        program = tmp_path / "nvidia-smi"
        (tmp_path / "output").write_text(output)
        (tmp_path / "figures").write_text(figures)
        query = "--query-gpu=uuid,memory.total,compute_cap --format=csv,noheader,nounits"
        program.write_text(
            f'#!/bin/sh\n[ "$*" = "{query}" ] && exec /bin/cat {tmp_path}/figures\n'
            f'[ "$*" = "-L" ] || exit 9\n/bin/cat {tmp_path}/output\necho "{stderr}" >&2\nexit {status}\n'
        )
        program.chmod(0o755)
        return {"PATH": str(tmp_path)}

    return make


def test_every_gpu_line_gives_its_uuid():
    assert [(device.uuid, device.index, device.product) for device in parse_nvidia_smi(TWO_GPUS)] == [
        ("GPU-aaaa-1", 0, "NVIDIA A100-SXM4-80GB"),
        ("GPU-bbbb-2", 1, "NVIDIA L4"),
    ]


def test_a_gpu_cut_into_mig_devices_is_listed_by_those():
    assert [(device.uuid, device.product, device.mig) for device in parse_nvidia_smi(MIG)] == [
        ("MIG-1111", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", True),
        ("MIG-2222", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", True),
        ("GPU-bbbb-2", "NVIDIA H100 PCIe", False),
    ]


def test_the_driver_says_what_each_gpu_is(nvidia_smi):
    figures = "GPU-aaaa-1, 81920, 8.0\nGPU-bbbb-2, 23034, 8.9\n"
    found = find_devices(nvidia_smi(TWO_GPUS, figures=figures), simulated=False)
    assert [
        (device.product, device.memory_bytes, device.compute_capability) for device in found.facts.devices.values()
    ] == [("NVIDIA A100-SXM4-80GB", 81920 << 20, "8.0"), ("NVIDIA L4", 23034 << 20, "8.9")]


def test_what_the_driver_does_not_say_is_not_made_up(nvidia_smi):
    found = find_devices(nvidia_smi(TWO_GPUS, figures="GPU-aaaa-1, [N/A], 8.0\n"), simulated=False)
    assert found.uuids == ("GPU-aaaa-1", "GPU-bbbb-2")
    assert not found.facts.devices
    assert parse_query("GPU-a, [N/A], 8.0\n") == {}


def test_what_a_simulated_nodes_device_plugin_hands_over_is_taken():
    handed_over = '{"version": 1, "devices": [{"uuid": "GPU-a", "memoryBytes": 5}], "links": []}'
    found = find_devices({"NVIDIA_VISIBLE_DEVICES": "GPU-a", "UELLM_SIMULATED_DEVICES": handed_over}, simulated=True)
    assert found.facts.devices["GPU-a"].memory_bytes == 5


def test_text_that_is_not_a_list_gives_no_devices():
    assert parse_nvidia_smi("No devices found.\n") == ()


def test_nvidia_smi_is_asked_first(nvidia_smi):
    found = find_devices(nvidia_smi(TWO_GPUS), simulated=False)
    assert (found.uuids, found.source) == (("GPU-aaaa-1", "GPU-bbbb-2"), "nvidia-smi")


@pytest.mark.parametrize(
    "value", ["void", "all", "none", "", "0,1", "/var/run/nvidia-container-devices", "nvidia.com/gpu=GPU-aaaa-1"]
)
def test_a_variable_that_names_no_uuids_does_not_matter_where_nvidia_smi_answers(nvidia_smi, value):
    found = find_devices(nvidia_smi(TWO_GPUS) | {"NVIDIA_VISIBLE_DEVICES": value}, simulated=False)
    assert found.uuids == ("GPU-aaaa-1", "GPU-bbbb-2")


def test_a_privileged_container_keeps_to_what_it_was_allocated(nvidia_smi):
    found = find_devices(nvidia_smi(TWO_GPUS) | {"NVIDIA_VISIBLE_DEVICES": "GPU-bbbb-2"}, simulated=False)
    assert (found.uuids, found.source) == (("GPU-bbbb-2",), "nvidia-smi")


def test_an_allocated_gpu_the_driver_does_not_show_is_named(nvidia_smi):
    with pytest.raises(PlanError, match=r"names GPU-gone-9, which .* does not list \(it has GPU-aaaa-1") as caught:
        find_devices(nvidia_smi(TWO_GPUS) | {"NVIDIA_VISIBLE_DEVICES": "GPU-aaaa-1,GPU-gone-9"}, simulated=False)
    assert caught.value.reason == "DeviceLost"


def test_the_variable_is_the_fallback_where_nvidia_smi_fails(nvidia_smi):
    environment = nvidia_smi("", status=9, stderr="couldn't communicate with the NVIDIA driver")
    found = find_devices(environment | {"NVIDIA_VISIBLE_DEVICES": "GPU-b, GPU-a"}, simulated=False)
    assert (found.uuids, found.source) == (("GPU-b", "GPU-a"), "NVIDIA_VISIBLE_DEVICES")


def test_the_error_contains_nvidia_smis_output(nvidia_smi):
    environment = nvidia_smi("", status=9, stderr="couldn't communicate with the NVIDIA driver")
    with pytest.raises(PlanError, match=r"exit status 9, couldn't communicate"):
        find_devices(environment, simulated=False)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "is not set"),
        ("", "is empty"),
        ("void", "is `void`"),
        ("none", "is `none`"),
        ("all", "is `all`: that is every GPU of the node"),
        ("0,1", "is `0,1`: not a list of uuids"),
        ("/var/run/nvidia-container-devices", "come in another way"),
    ],
)
def test_a_variable_that_names_no_uuids_is_explained(tmp_path, value, sentence):
    environment = {"PATH": str(tmp_path)} | ({} if value is None else {"NVIDIA_VISIBLE_DEVICES": value})
    with pytest.raises(PlanError, match=sentence) as caught:
        find_devices(environment, simulated=False)
    assert caught.value.reason == "NoDevices"
    assert "not found in PATH" in str(caught.value)


def test_simulated_devices_come_from_the_variable_even_on_a_machine_with_gpus(nvidia_smi):
    environment = nvidia_smi(TWO_GPUS) | {"NVIDIA_VISIBLE_DEVICES": "GPU-sim-1,GPU-sim-0,GPU-sim-1"}
    found = find_devices(environment, simulated=True)
    assert (found.uuids, found.source) == (("GPU-sim-1", "GPU-sim-0"), "NVIDIA_VISIBLE_DEVICES")


def test_a_program_that_cannot_be_run_is_no_crash(tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/nonexistent/interpreter\n")
    os.chmod(tmp_path / "nvidia-smi", 0o755)
    with pytest.raises(PlanError, match="nvidia-smi"):
        find_devices({"PATH": str(tmp_path)}, simulated=False)
