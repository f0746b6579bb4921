"""The driver as a source, with a stand-in for the NVML library."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from helpers.sizes import GIB
from uellm.api import parse
from uellm.api.gpunodeprofile import DeviceProfile, LinkProfile
from uellm.profiler.gpu_state import fabric
from uellm.profiler.nvml import NVMLSource
from uellm.profiler.sample import DriverChanged, NoGPUs, SourceError


def test_a_device_is_described_in_the_terms_of_the_profile(nvml, tmp_path: Path):
    numa = tmp_path / "0000:3b:00.0" / "numa_node"
    numa.parent.mkdir()
    numa.write_text("1\n")
    library = nvml.Library(nvml.GPU("GPU-a", name="NVIDIA H100", total=80 * GIB, free=79 * GIB))

    sample = NVMLSource(library, sysfs_pci=tmp_path).sample()

    assert sample.devices == (
        {
            "index": 0,
            "uuid": "GPU-a",
            "product": "NVIDIA H100",
            "computeCapability": "9.0",
            "memoryBytes": 80 * GIB,
            "memoryFreeBytes": 79 * GIB,
            "numaNode": 1,
            "pciBusId": "0000:3b:00.0",
            "powerLimitWatts": 300,
        },
    )
    parse(DeviceProfile, sample.devices[0])
    assert (sample.source, sample.driver_version, sample.cuda_version) == ("NVML", "580.65.06", "13.1")


def test_nvml_is_closed_between_samples_also_after_a_failure(nvml):
    library = nvml.Library(nvml.GPU("GPU-a"))
    source = NVMLSource(library)
    source.sample()
    assert library.open == 0

    library.faults = {"nvmlDeviceGetCount": 999}
    with pytest.raises(SourceError, match="cannot list"):
        source.sample()
    assert (library.open, library.samples) == (0, 2)


def test_figures_that_a_board_does_not_have_are_left_out(nvml, tmp_path: Path):
    library = nvml.Library(nvml.GPU("GPU-a", power_milliwatts=None, knows_mig=False))
    (device,) = NVMLSource(library, sysfs_pci=tmp_path).sample().devices
    assert not {"powerLimitWatts", "numaNode", "mig"} & device.keys()


def test_the_kernels_value_for_no_numa_node_is_no_numa_node(nvml, tmp_path: Path):
    (tmp_path / "0000:3b:00.0").mkdir()
    (tmp_path / "0000:3b:00.0" / "numa_node").write_text("-1\n")
    (device,) = NVMLSource(nvml.Library(nvml.GPU("GPU-a")), sysfs_pci=tmp_path).sample().devices
    assert "numaNode" not in device


def test_slices_of_a_gpu_in_mig_mode_take_its_place(nvml):
    slices = [nvml.GPU("MIG-1", name="H100 MIG 1g.10gb", total=10 * GIB), None, nvml.GPU("MIG-2", total=10 * GIB)]
    library = nvml.Library(nvml.GPU("GPU-a"), nvml.GPU("GPU-b", mig=slices, processes=1))

    sample = NVMLSource(library).sample()

    assert [(device["uuid"], device["index"], device.get("mig")) for device in sample.devices] == [
        ("GPU-a", 0, None),
        ("MIG-1", 1, True),
        ("MIG-2", 1, True),
    ]
    assert sample.devices[1]["memoryBytes"] == 10 * GIB
    assert sample.busy == {"MIG-1", "MIG-2"}
    assert sample.links == ()  # slices do not communicate with each other


def test_a_gpu_in_mig_mode_without_slices_offers_nothing(nvml):
    sample = NVMLSource(nvml.Library(nvml.GPU("GPU-a", mig=[]))).sample()
    assert sample.devices == ()
    assert sample.failed == {}


@pytest.fixture
def meminfo(tmp_path):
    """The kernel's count on a machine with 120 GiB and a bit, of which 112 are available."""
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 125829777 kB\nMemFree: 1024 kB\nMemAvailable: 117440512 kB\nHugePages_Total: 0\n")
    return path


@pytest.mark.parametrize("silent", [{"memory_known": False}, {"total": 0, "free": 0}], ids=["no answer", "zeros"])
def test_a_gpu_that_shares_the_machine_s_memory_has_that(nvml, meminfo, silent):
    spark = nvml.GPU("GPU-a", name="NVIDIA GB10", capability=(12, 1), **silent)
    sample = NVMLSource(nvml.Library(spark), meminfo=meminfo).sample()
    (device,) = sample.devices
    assert (device["memoryBytes"], device["memoryFreeBytes"]) == (120 * GIB, 112 * GIB)
    assert (sample.failed, sample.used_bytes, sample.busy) == ({}, {"GPU-a": 8 * GIB}, frozenset())


@pytest.mark.parametrize(("product", "text"), [("NVIDIA H100", None), ("NVIDIA GB10", "MemTotal: some\n")])
def test_a_gpu_whose_memory_nothing_tells_is_a_failure(nvml, meminfo, product, text):
    if text:
        meminfo.write_text(text)
    sample = NVMLSource(nvml.Library(nvml.GPU("GPU-a", name=product, memory_known=False)), meminfo=meminfo).sample()
    assert (sample.devices, sample.failed[0].reason) == ((), "NVMLError")


def test_a_lost_gpu_is_a_failure_and_the_others_are_still_seen(nvml):
    sample = NVMLSource(nvml.Library(nvml.GPU("GPU-a", lost=True), nvml.GPU("GPU-b"))).sample()
    assert [device["uuid"] for device in sample.devices] == ["GPU-b"]
    assert sample.failed[0].reason == "GPULost"
    assert "GPU 0" in sample.failed[0].message


def test_a_gpu_that_wants_a_reset_is_a_failure_that_says_so(nvml):
    library = nvml.Library(nvml.GPU("GPU-a"))
    library.faults = {"nvmlDeviceGetEccMode": 16}
    assert NVMLSource(library).sample().failed[0] == (
        "GPUNeedsReset",
        "GPU 0 has to be reset before it can be used: drain the node first",
    )


def test_a_gpu_that_does_not_report_its_memory_is_a_failure(nvml):
    sample = NVMLSource(nvml.Library(nvml.GPU("GPU-a", memory_known=False))).sample()
    assert sample.failed[0].reason == "NVMLError"


@pytest.mark.parametrize(
    ("free", "processes", "busy"), [(24 * GIB, 0, False), (24 * GIB, 1, True), (20 * GIB, 0, True)]
)
def test_a_gpu_with_a_process_or_used_memory_is_busy(nvml, free, processes, busy):
    sample = NVMLSource(nvml.Library(nvml.GPU("GPU-a", free=free, processes=processes))).sample()
    assert sample.busy == ({"GPU-a"} if busy else set())


def test_links_are_named_as_nvidia_smi_does(nvml):
    gpus = [nvml.GPU(f"GPU-{name}", bus_id=f"00000000:{name}0:00.0") for name in "ABCD"]
    a, b, c, _ = gpus
    a.nvlinks, b.nvlinks = {3: (b.bus_id, 0)}, {0: (a.bus_id, 0)}
    a.ancestors = {"GPU-C": 10, "GPU-D": 50}
    b.ancestors = {"GPU-C": 20, "GPU-D": 30}
    c.ancestors = {"GPU-D": 40}

    links = NVMLSource(nvml.Library(*gpus)).sample().links

    kinds = {(link["a"][-1] + link["b"][-1]): link["kind"] for link in links}
    assert {pair: kinds[pair] for pair in ("AB", "BA", "AC", "BC", "BD", "CD", "AD")} == {
        "AB": "NVLink",
        "BA": "NVLink",
        "AC": "PIX",
        "BC": "PXB",
        "BD": "PHB",
        "CD": "NODE",
        "AD": "SYS",
    }
    assert kinds["DC"] == "SYS"  # the driver does not know
    assert len(links) == 12
    for link in links:
        parse(LinkProfile, link)


def test_gpus_on_one_nvlink_switch_are_linked_though_no_link_leads_to_the_other(nvml):
    switch = ("00000000:C0:00.0", 2)
    a = nvml.GPU("GPU-a", bus_id="00000000:01:00.0", nvlinks={0: switch})
    b = nvml.GPU("GPU-b", bus_id="00000000:02:00.0", nvlinks={5: switch})
    c = nvml.GPU("GPU-c", bus_id="00000000:03:00.0")
    kinds = {(link["a"], link["b"]): link["kind"] for link in NVMLSource(nvml.Library(a, b, c)).sample().links}
    assert kinds["GPU-a", "GPU-b"] == "NVLink"
    assert kinds["GPU-a", "GPU-c"] == "SYS"


def test_an_h100_is_described_in_depth(nvml, tmp_path: Path):
    library = nvml.Library(nvml.board("H100", "GPU-a", default_power_milliwatts=650_000, slowdowns=0x4 | 0x40))
    (device,) = NVMLSource(library, sysfs_pci=tmp_path).sample().devices
    assert device == {
        "index": 0,
        "uuid": "GPU-a",
        "product": "NVIDIA H100 80GB HBM3",
        "computeCapability": "9.0",
        "memoryBytes": 80 * GIB,
        "memoryFreeBytes": 79 * GIB,
        "pciBusId": "0000:3b:00.0",
        "powerLimitWatts": 700,
        "powerLimitDefaultWatts": 650,
        "pcie": {"width": 16, "maxWidth": 16, "generation": 5, "maxGeneration": 5},
        "nvlinks": {"active": 18, "switched": True},
        "fabric": {"state": "Completed"},
        "memoryErrors": {
            "ecc": True,
            "uncorrectable": 0,
            "uncorrectableEver": 0,
            "remapPending": False,
            "remapFailed": False,
        },
        "clocksSlowedBy": ["HardwareThermal"],
    }
    assert parse(DeviceProfile, device).to_dict() == {**device, "resourceName": "nvidia.com/gpu", "mig": False}


@pytest.mark.parametrize(
    ("product", "errors", "links", "slices"),
    [
        ("A100", {"ecc", "uncorrectable", "uncorrectableEver", "remapPending", "remapFailed"}, 12, True),
        ("L40S", {"ecc", "uncorrectable", "uncorrectableEver", "remapPending", "remapFailed"}, None, False),
        ("T4", {"ecc", "uncorrectable", "uncorrectableEver", "retirementPending"}, None, False),
        ("4090", set(), None, False),
    ],
)
def test_each_product_has_the_facts_that_its_board_reports(nvml, product, errors, links, slices):
    (device,) = NVMLSource(nvml.Library(nvml.board(product, "GPU-a"))).sample().devices
    assert device.get("memoryErrors", {}).keys() == errors
    assert device.get("nvlinks", {}).get("active") == links
    assert "clocksSlowedBy" not in device  # idle and power cap are no troubles
    parse(DeviceProfile, device)


def test_slices_have_the_state_of_their_gpu_and_no_nvlinks(nvml):
    slices = [nvml.GPU("MIG-1", name="NVIDIA A100 MIG 3g.40gb", total=40 * GIB)]
    gpu = nvml.board("A100", "GPU-a", mig=slices, rows=(0, 1, 1, 0), minor=3)
    sample = NVMLSource(nvml.Library(gpu)).sample()
    (device,) = sample.devices
    assert device["memoryErrors"]["remapPending"] is True
    assert "nvlinks" not in device
    assert sample.aliases == {"nvidia3": ("MIG-1",), "GPU-a": ("MIG-1",)}


def test_links_that_are_down_are_not_counted_and_those_that_do_not_exist_neither(nvml):
    switch = ("00000000:C0:00.0", 2)
    gpu = nvml.GPU("GPU-a", nvlinks=dict.fromkeys(range(5), switch), down=frozenset({5}))
    (device,) = NVMLSource(nvml.Library(gpu)).sample().devices
    assert device["nvlinks"] == {"active": 5, "switched": True}


def test_memory_in_use_is_told_without_what_the_driver_keeps(nvml):
    library = nvml.Library(nvml.board("H100", "GPU-a", free=69 * GIB))
    assert NVMLSource(library).sample().used_bytes == {"GPU-a": 10 * GIB}


@pytest.mark.parametrize(
    ("code", "kind", "reason", "words"),
    [
        (12, NoGPUs, "NoDriver", "no NVIDIA driver here"),
        (9, NoGPUs, "NoDriver", "not loaded"),
        (18, DriverChanged, "DriverChanged", "replaced"),
        (4, SourceError, "NVMLFailed", "permission"),
        (999, SourceError, "NVMLFailed", "cannot be opened"),
    ],
)
def test_a_library_that_cannot_be_opened_says_why_in_one_line(nvml, code, kind, reason, words):
    with pytest.raises(kind, match=words) as caught:
        NVMLSource(nvml.Library(init_error=code)).sample()
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vendor", "kind", "hidden"),
    [("0x10de", "0x030200", True), ("0x10de", "0x020700", False), ("0x1002", "0x030000", False)],
    ids=["a GPU", "a network card by NVIDIA", "a GPU by another vendor"],
)
def test_gpus_that_no_driver_shows_are_seen_on_the_bus(nvml, tmp_path, vendor, kind, hidden):
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    with pytest.raises(NoGPUs) as caught:
        NVMLSource(nvml.Library(init_error=12), sysfs_pci=tmp_path).sample()
    assert caught.value.hidden is hidden


def test_without_the_package_the_line_says_what_to_install(monkeypatch):
    def missing(name: str):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("uellm.profiler.nvml.importlib.import_module", missing)
    with pytest.raises(NoGPUs, match="nvidia-ml-py"):
        NVMLSource().sample()


def test_the_real_library_has_every_function_that_is_used(nvml):
    pynvml = pytest.importorskip("pynvml")
    used = {name for name in dir(nvml.Library) if name.startswith(("nvml", "NVML"))}
    assert {name for name in used if not hasattr(pynvml, name)} == set()


def test_the_fabric_is_asked_of_the_driver_through_nvmls_own_structure(monkeypatch):
    """pynvml's call, with a driver's function in C's place."""
    pynvml = pytest.importorskip("pynvml")
    asked = []

    @ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.POINTER(pynvml.c_nvmlGpuFabricInfo_v2_t))
    def driver(_, info):
        asked.append(info.contents.version)
        info.contents.state, info.contents.status = pynvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS, 0
        return pynvml.NVML_SUCCESS

    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer", {"nvmlDeviceGetGpuFabricInfoV": driver}.__getitem__)
    assert fabric(pynvml, None) == {"state": "InProgress"}
    assert asked == [pynvml.nvmlGpuFabricInfo_v2]
