from __future__ import annotations

import os
from pathlib import Path

import pytest

from uellm.errors import PlanError
from uellm.launcher.devices import FoundDevices, find_devices, parse_nvidia_smi

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

    def make(output: str, *, status: int = 0, stderr: str = "") -> dict[str, str]:
        program = tmp_path / "nvidia-smi"
        (tmp_path / "output").write_text(output)
        program.write_text(
            f'#!/bin/sh\n[ "$*" = "-L" ] || exit 9\n/bin/cat {tmp_path}/output\necho "{stderr}" >&2\nexit {status}\n'
        )
        program.chmod(0o755)
        return {"PATH": str(tmp_path)}

    return make


def test_every_gpu_line_gives_its_uuid():
    assert parse_nvidia_smi(TWO_GPUS) == ("GPU-aaaa-1", "GPU-bbbb-2")


def test_a_gpu_cut_into_mig_devices_is_listed_by_those():
    assert parse_nvidia_smi(MIG) == ("MIG-1111", "MIG-2222", "GPU-bbbb-2")


def test_text_that_is_not_a_list_gives_no_devices():
    assert parse_nvidia_smi("No devices found.\n") == ()


def test_nvidia_smi_is_asked_first(nvidia_smi):
    assert find_devices(nvidia_smi(TWO_GPUS), simulated=False) == FoundDevices(
        ("GPU-aaaa-1", "GPU-bbbb-2"), "nvidia-smi"
    )


@pytest.mark.parametrize(
    "value", ["void", "all", "none", "", "0,1", "/var/run/nvidia-container-devices", "nvidia.com/gpu=GPU-aaaa-1"]
)
def test_a_variable_that_names_no_uuids_does_not_matter_where_nvidia_smi_answers(nvidia_smi, value):
    found = find_devices(nvidia_smi(TWO_GPUS) | {"NVIDIA_VISIBLE_DEVICES": value}, simulated=False)
    assert found.uuids == ("GPU-aaaa-1", "GPU-bbbb-2")


def test_a_privileged_container_keeps_to_what_it_was_allocated(nvidia_smi):
    found = find_devices(nvidia_smi(TWO_GPUS) | {"NVIDIA_VISIBLE_DEVICES": "GPU-bbbb-2"}, simulated=False)
    assert found == FoundDevices(("GPU-bbbb-2",), "nvidia-smi")


def test_an_allocated_gpu_the_driver_does_not_show_is_named(nvidia_smi):
    with pytest.raises(PlanError, match=r"names GPU-gone-9, which .* does not list \(it has GPU-aaaa-1") as caught:
        find_devices(nvidia_smi(TWO_GPUS) | {"NVIDIA_VISIBLE_DEVICES": "GPU-aaaa-1,GPU-gone-9"}, simulated=False)
    assert caught.value.reason == "NoDevices"


def test_the_variable_is_the_fallback_where_nvidia_smi_fails(nvidia_smi):
    environment = nvidia_smi("", status=9, stderr="couldn't communicate with the NVIDIA driver")
    found = find_devices(environment | {"NVIDIA_VISIBLE_DEVICES": "GPU-b, GPU-a"}, simulated=False)
    assert found == FoundDevices(("GPU-b", "GPU-a"), "NVIDIA_VISIBLE_DEVICES")


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
    assert find_devices(environment, simulated=True) == FoundDevices(
        ("GPU-sim-1", "GPU-sim-0"), "NVIDIA_VISIBLE_DEVICES"
    )


def test_a_program_that_cannot_be_run_is_no_crash(tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/nonexistent/interpreter\n")
    os.chmod(tmp_path / "nvidia-smi", 0o755)
    with pytest.raises(PlanError, match="nvidia-smi"):
        find_devices({"PATH": str(tmp_path)}, simulated=False)
