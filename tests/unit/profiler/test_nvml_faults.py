"""Every call of the driver fails in turn, and only what it would have told is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_nvml import FakeGPU, FakeNVML, board
from helpers.sizes import GIB
from uellm.profiler.nvml import NVMLSource
from uellm.profiler.nvml_library import Library
from uellm.profiler.sample import Sample, SourceError

NOT_SUPPORTED, GPU_IS_LOST, ARGUMENT_VERSION_MISMATCH, UNKNOWN = 3, 15, 25, 999

# What is lost on the whole GPU of `library()`, by call; a path of names in its entry of the profile.
OF_A_DEVICE: dict[str, tuple[str, ...]] = {
    "nvmlDeviceGetName": ("product",),
    "nvmlDeviceGetCudaComputeCapability": ("computeCapability",),
    "nvmlDeviceGetPciInfo": ("pciBusId", "numaNode"),
    "nvmlDeviceGetEnforcedPowerLimit": ("powerLimitWatts",),
    "nvmlDeviceGetPowerManagementDefaultLimit": ("powerLimitDefaultWatts",),
    "nvmlDeviceGetCurrPcieLinkWidth": ("pcie.width",),
    "nvmlDeviceGetMaxPcieLinkWidth": ("pcie.maxWidth",),
    "nvmlDeviceGetCurrPcieLinkGeneration": ("pcie.generation",),
    "nvmlDeviceGetMaxPcieLinkGeneration": ("pcie.maxGeneration",),
    "nvmlDeviceGetEccMode": ("memoryErrors.ecc",),
    "nvmlDeviceGetTotalEccErrors": ("memoryErrors.uncorrectable", "memoryErrors.uncorrectableEver"),
    "nvmlDeviceGetCurrentClocksThrottleReasons": ("clocksSlowedBy",),
}
# What else is lost, by call: of the sample as a whole.
OF_THE_SAMPLE: dict[str, dict[str, Any]] = {
    "nvmlSystemGetDriverVersion": {"driver_version": ""},
    "nvmlSystemGetCudaDriverVersion_v2": {"cuda_version": ""},
    "nvmlShutdown": {},
}
NO_GPU_WITHOUT = ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo")
NO_SAMPLE_WITHOUT = ("nvmlInit", "nvmlDeviceGetCount")
TESTED_BY_NAME = {
    "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetRetiredPagesPendingStatus",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetNvLinkRemotePciInfo",
    "nvmlDeviceGetNvLinkRemoteDeviceType",
    "nvmlDeviceGetTopologyCommonAncestor",
    "nvmlDeviceGetGpuFabricInfoV",
}


def library() -> FakeNVML:
    """Two H100s on a switch, slowed by heat so that every field has a value, and one cut into slices."""
    a = board("H100", "GPU-a", bus_id="00000000:01:00.0", slowdowns=0x40, ancestors={"GPU-b": 30})
    b = board("H100", "GPU-b", bus_id="00000000:02:00.0", slowdowns=0x40)
    cut = board("H100", "GPU-c", bus_id="00000000:03:00.0", mig=[FakeGPU("MIG-1", total=40 * GIB, instance=1)])
    return FakeNVML(a, b, cut)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for bus in ("01", "02", "03"):
        (tmp_path / f"0000:{bus}:00.0").mkdir()
        (tmp_path / f"0000:{bus}:00.0" / "numa_node").write_text("0\n")
    return tmp_path


@pytest.fixture
def seen(sysfs: Path):
    """`seen(call, code)`: the sample while exactly that call fails."""

    def look(call: str = "", code: int = 0) -> Sample:
        nvml = library()
        nvml.faults = {call: code} if call else {}
        return NVMLSource(nvml, sysfs_pci=sysfs).sample()

    return look


def without(device: Any, path: str) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    assert name in device
    kept = {key: value for key, value in device.items() if key != name}
    return {**kept, name: without(device[name], rest)} if rest else kept


def test_the_fate_of_every_call_is_stated_here():
    calls = {name for name in dir(Library) if name.startswith("nvml") and name != "nvmlMemory_v2"}
    stated = {*OF_A_DEVICE, *OF_THE_SAMPLE, *NO_GPU_WITHOUT, *NO_SAMPLE_WITHOUT, *TESTED_BY_NAME}
    assert stated == calls


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
@pytest.mark.parametrize("call", OF_A_DEVICE)
def test_a_call_that_fails_loses_its_fields_alone(seen, call, code):
    whole, sample = seen(), seen(call, code)
    assert sample.failed == {}
    for device, complete in zip(sample.devices, whole.devices, strict=True):
        expected = complete
        for path in OF_A_DEVICE[call]:
            expected = without(expected, path) if path != "clocksSlowedBy" or path in expected else expected
        assert device == expected
    if call != "nvmlDeviceGetPciInfo":
        assert replace(sample, devices=()) == replace(whole, devices=())


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
@pytest.mark.parametrize("call", OF_THE_SAMPLE)
def test_a_call_about_the_system_loses_its_fact_alone(seen, call, code):
    assert seen(call, code) == replace(seen(), **OF_THE_SAMPLE[call])


LOSES_THE_GPU = sorted(
    {*OF_A_DEVICE, *NO_GPU_WITHOUT, *TESTED_BY_NAME}
    - {
        "nvmlDeviceGetGpuInstanceId",
        # Asked of pairs, of slices, of old boards and of whole ones on a switch.
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetTopologyCommonAncestor",
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetMigDeviceHandleByIndex",
        "nvmlDeviceGetRetiredPagesPendingStatus",
    }
)


@pytest.mark.parametrize("call", LOSES_THE_GPU)
def test_a_gpu_that_is_lost_during_any_call_is_a_lost_gpu(seen, call):
    sample = seen(call, GPU_IS_LOST)
    lost = {0, 1} if call.startswith("nvmlDeviceGetNvLink") else {0, 1, 2}
    assert {index: failure.reason for index, failure in sample.failed.items()} == dict.fromkeys(lost, "GPULost")
    assert {device["index"] for device in sample.devices} == {0, 1, 2} - lost


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
@pytest.mark.parametrize("call", NO_GPU_WITHOUT)
def test_a_gpu_without_identity_or_memory_is_a_failure(seen, call, code):
    sample = seen(call, code)
    assert {failure.reason for failure in sample.failed.values()} == {"NVMLError"}
    assert sample.devices == ()


@pytest.mark.parametrize("code", [NOT_SUPPORTED, GPU_IS_LOST, UNKNOWN])
@pytest.mark.parametrize("call", NO_SAMPLE_WITHOUT)
def test_without_the_library_or_the_list_nothing_is_seen(seen, call, code):
    with pytest.raises(SourceError):
        seen(call, code)


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
def test_without_device_numbers_only_the_names_by_them_are_lost(seen, code):
    sample = seen("nvmlDeviceGetMinorNumber", code)
    assert sample == replace(seen(), aliases={"GPU-c": ("MIG-1",)})
    slices = seen("nvmlDeviceGetGpuInstanceId", code)
    assert seen().aliases.keys() - slices.aliases.keys() == {"nvidia2/gi1"}


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
def test_without_remapped_rows_the_retired_pages_are_asked_for(seen, code):
    errors = seen("nvmlDeviceGetRemappedRows", code).devices[0]["memoryErrors"]
    assert errors == {"ecc": True, "uncorrectable": 0, "uncorrectableEver": 0}
    nvml = FakeNVML(board("T4", "GPU-t", retirement=1))
    assert NVMLSource(nvml).sample().devices[0]["memoryErrors"]["retirementPending"] is True
    nvml.faults = {"nvmlDeviceGetRetiredPagesPendingStatus": code}
    assert "retirementPending" not in NVMLSource(nvml).sample().devices[0]["memoryErrors"]


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
def test_a_gpu_whose_processes_are_not_known_is_busy(seen, code):
    sample = seen("nvmlDeviceGetComputeRunningProcesses", code)
    assert sample.busy == {"GPU-a", "GPU-b", "MIG-1"}
    assert sample.devices == seen().devices


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
def test_a_gpu_whose_mode_is_not_known_is_a_whole_one(seen, code):
    sample = seen("nvmlDeviceGetMigMode", code)
    assert [device["uuid"] for device in sample.devices] == ["GPU-a", "GPU-b", "GPU-c"]


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN, GPU_IS_LOST])
def test_a_gpu_in_mig_mode_that_lists_no_slices_offers_nothing(seen, code):
    sample = seen("nvmlDeviceGetMaxMigDeviceCount", code)
    assert list(sample.failed) == [2]
    assert [device["uuid"] for device in sample.devices] == ["GPU-a", "GPU-b"]
    missing = seen("nvmlDeviceGetMigDeviceHandleByIndex", code)
    assert [device["uuid"] for device in missing.devices] == ["GPU-a", "GPU-b"]


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
def test_without_the_state_of_nvlinks_gpus_are_linked_by_the_bus_and_none_seems_down(seen, code):
    sample = seen("nvmlDeviceGetNvLinkState", code)
    assert [link["kind"] for link in sample.links] == ["PHB", "SYS"]
    assert all("nvlinks" not in device for device in sample.devices)


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
def test_without_the_far_end_of_nvlinks_they_are_counted_and_lead_nowhere(seen, code):
    sample = seen("nvmlDeviceGetNvLinkRemoteDeviceType", code)
    assert [link["kind"] for link in sample.links] == ["PHB", "SYS"]
    assert sample.devices[0]["nvlinks"] == {"active": 18, "switched": False}
    # Into a switch, the address of the far end does not matter.
    assert seen("nvmlDeviceGetNvLinkRemotePciInfo", code) == seen()


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN, GPU_IS_LOST])
def test_without_common_ancestors_gpus_count_as_far_apart(sysfs, code):
    nvml = FakeNVML(FakeGPU("GPU-a", ancestors={"GPU-b": 10}), FakeGPU("GPU-b", ancestors={"GPU-a": 10}))
    assert {link["kind"] for link in NVMLSource(nvml, sysfs_pci=sysfs).sample().links} == {"PIX"}
    nvml.faults = {"nvmlDeviceGetTopologyCommonAncestor": code}
    assert {link["kind"] for link in NVMLSource(nvml, sysfs_pci=sysfs).sample().links} == {"SYS"}


@pytest.mark.parametrize("code", [NOT_SUPPORTED, ARGUMENT_VERSION_MISMATCH, UNKNOWN])
def test_a_driver_that_tells_nothing_of_the_fabric_loses_its_state_alone(seen, code):
    whole, sample = seen(), seen("nvmlDeviceGetGpuFabricInfoV", code)
    assert [device.get("fabric") for device in whole.devices[:2]] == [{"state": "Completed"}] * 2
    expected = tuple({name: value for name, value in each.items() if name != "fabric"} for each in whole.devices)
    assert sample == replace(whole, devices=expected)
