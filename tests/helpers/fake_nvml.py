"""A stand-in for the NVML library: boards as their data sheets have them, and calls that fail one by one."""
# ruff: noqa: N802, N815 (the names are NVML's)

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from helpers.sizes import GIB

NOT_SUPPORTED, NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED, UNKNOWN = 3, 6, 15, 16, 999
SWITCH = ("00000000:C0:00.0", 2)


class FabricInfo(ctypes.Structure):
    """nvmlGpuFabricInfo_v2_t."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("clusterUuid", ctypes.c_uint8 * 16),
        ("status", ctypes.c_uint),
        ("cliqueId", ctypes.c_uint32),
        ("state", ctypes.c_uint),
        ("healthMask", ctypes.c_uint32),
    )


class FakeNVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


@dataclass
class FakeGPU:
    """A board. A figure that is None is one that it does not have."""

    uuid: str
    name: str = "NVIDIA Test"
    capability: tuple[int, int] = (9, 0)
    total: int = 24 * GIB
    free: int = 24 * GIB
    reserved: int = 0
    """Of the memory that is not free: what the driver keeps for itself."""
    bus_id: str = "00000000:3B:00.0"
    minor: int | None = None  # None: its index
    power_milliwatts: int | None = 300_000
    default_power_milliwatts: int | None = None
    pcie: tuple[int, int, int, int] | None = None  # width and generation, now and at most
    ecc: bool | None = None
    uncorrectable: tuple[int, int] = (0, 0)  # since the reset, ever
    rows: tuple[int, int, int, int] | None = None  # remapped: correctable, uncorrectable; pending, failed
    retirement: int | None = None
    slowdowns: int | None = None
    processes: int = 0
    mig: list[Any] | None = None  # slices; None: not in MIG mode, or MIG is unknown
    knows_mig: bool = True
    instance: int | None = None  # of a slice
    nvlinks: dict[int, tuple[str, int]] = field(default_factory=dict)  # link: (remote bus id, type of the remote)
    down: frozenset[int] = frozenset()  # further links, which are down
    fabric: tuple[int, int] = (0, 0)  # state and status; 0: not supported
    ancestors: dict[str, int] = field(default_factory=dict)  # uuid: level
    lost: bool = False
    memory_known: bool = True


def board(product: str, uuid: str, **changes: Any) -> FakeGPU:
    """One of BOARDS. Datacenter boards have ECC; those from Ampere on remap rows, those before retire pages."""
    return FakeGPU(uuid, **{**BOARDS[product], **changes})


_AMPERE = {"ecc": True, "rows": (0, 0, 0, 0), "slowdowns": 0}
BOARDS: dict[str, dict[str, Any]] = {
    "A100": {
        "name": "NVIDIA A100-SXM4-80GB",
        "capability": (8, 0),
        "total": 80 * GIB,
        "free": 79 * GIB,
        "reserved": 1 * GIB,
        "power_milliwatts": 400_000,
        "default_power_milliwatts": 400_000,
        "pcie": (16, 4, 16, 4),
        "nvlinks": dict.fromkeys(range(12), SWITCH),
        **_AMPERE,
    },
    "H100": {
        "name": "NVIDIA H100 80GB HBM3",
        "capability": (9, 0),
        "total": 80 * GIB,
        "free": 79 * GIB,
        "reserved": 1 * GIB,
        "power_milliwatts": 700_000,
        "default_power_milliwatts": 700_000,
        "pcie": (16, 5, 16, 5),
        "nvlinks": dict.fromkeys(range(18), SWITCH),
        "fabric": (3, 0),
        **_AMPERE,
    },
    "L40S": {
        "name": "NVIDIA L40S",
        "capability": (8, 9),
        "total": 45 * GIB,
        "free": 44 * GIB,
        "reserved": 1 * GIB,
        "power_milliwatts": 350_000,
        "default_power_milliwatts": 350_000,
        "pcie": (16, 1, 16, 4),  # idle
        "knows_mig": False,
        **_AMPERE,
    },
    "T4": {
        "name": "Tesla T4",
        "capability": (7, 5),
        "total": 15 * GIB,
        "free": 15 * GIB,
        "power_milliwatts": 70_000,
        "default_power_milliwatts": 70_000,
        "pcie": (8, 1, 16, 3),  # clouds wire eight of its sixteen lanes
        "knows_mig": False,
        "ecc": True,
        "retirement": 0,
        "slowdowns": 0x1,  # idle
    },
    "4090": {
        "name": "NVIDIA GeForce RTX 4090",
        "capability": (8, 9),
        "total": 24 * GIB,
        "free": 23 * GIB,
        "reserved": GIB // 2,
        "power_milliwatts": 450_000,
        "default_power_milliwatts": 450_000,
        "pcie": (16, 1, 16, 4),
        "knows_mig": False,
        "slowdowns": 0x4,  # power cap
    },
}


class FakeNVML:
    """The functions of pynvml that the profiler uses, over `gpus`; every call but init needs an open library."""

    NVMLError = FakeNVMLError
    NVML_NVLINK_MAX_LINKS = 18
    nvmlMemory_v2 = 0x02000028
    c_nvmlGpuFabricInfo_v2_t = FabricInfo

    def __init__(self, *gpus: FakeGPU, init_error: int = 0) -> None:
        self.gpus = list(gpus)
        self.init_error = init_error
        self.open = 0
        self.samples = 0
        self.faults: dict[str, int] = {}
        """Error by name of a call: it fails with that, and every other call answers."""

    def __getattribute__(self, name: str) -> Any:
        code = object.__getattribute__(self, "__dict__").get("faults", {}).get(name)
        if code is None:
            return object.__getattribute__(self, name)

        def fails(*_: Any) -> Any:
            raise FakeNVMLError(code)

        return fails

    def nvmlInit(self) -> None:
        if self.init_error:
            raise FakeNVMLError(self.init_error)
        self.open += 1
        self.samples += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65.06"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13010

    def nvmlDeviceGetCount(self) -> int:
        if not self.open:
            raise FakeNVMLError(1)
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGPU:
        gpu = self.gpus[index]
        if gpu.lost:
            raise FakeNVMLError(GPU_IS_LOST)
        return gpu

    def nvmlDeviceGetUUID(self, gpu: FakeGPU) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: FakeGPU) -> str:
        return gpu.name

    def nvmlDeviceGetMinorNumber(self, gpu: FakeGPU) -> int:
        return self.gpus.index(gpu) if gpu.minor is None else gpu.minor

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGPU) -> tuple[int, int]:
        return gpu.capability

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGPU, version: int | None = None) -> Any:
        if not gpu.memory_known:
            raise FakeNVMLError(NOT_SUPPORTED)
        used = gpu.total - gpu.free - (gpu.reserved if version else 0)
        return SimpleNamespace(total=gpu.total, free=gpu.free, used=used)

    def nvmlDeviceGetPciInfo(self, gpu: FakeGPU) -> Any:
        return SimpleNamespace(busId=gpu.bus_id)

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: FakeGPU) -> int:
        return _had(gpu.power_milliwatts)

    def nvmlDeviceGetPowerManagementDefaultLimit(self, gpu: FakeGPU) -> int:
        return _had(gpu.default_power_milliwatts)

    def nvmlDeviceGetCurrPcieLinkWidth(self, gpu: FakeGPU) -> int:
        return _had(gpu.pcie)[0]

    def nvmlDeviceGetCurrPcieLinkGeneration(self, gpu: FakeGPU) -> int:
        return _had(gpu.pcie)[1]

    def nvmlDeviceGetMaxPcieLinkWidth(self, gpu: FakeGPU) -> int:
        return _had(gpu.pcie)[2]

    def nvmlDeviceGetMaxPcieLinkGeneration(self, gpu: FakeGPU) -> int:
        return _had(gpu.pcie)[3]

    def nvmlDeviceGetEccMode(self, gpu: FakeGPU) -> list[int]:
        return [int(_had(gpu.ecc))] * 2

    def nvmlDeviceGetTotalEccErrors(self, gpu: FakeGPU, errors: int, counter: int) -> int:
        if not _had(gpu.ecc) or errors != 1:
            raise FakeNVMLError(NOT_SUPPORTED)
        return gpu.uncorrectable[counter]

    def nvmlDeviceGetRemappedRows(self, gpu: FakeGPU) -> tuple[int, int, int, int]:
        return _had(gpu.rows)

    def nvmlDeviceGetRetiredPagesPendingStatus(self, gpu: FakeGPU) -> int:
        return _had(gpu.retirement)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: FakeGPU) -> int:
        return _had(gpu.slowdowns)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGPU) -> list[Any]:
        return [object()] * gpu.processes

    def nvmlDeviceGetMigMode(self, gpu: FakeGPU) -> list[int]:
        if not gpu.knows_mig:
            raise FakeNVMLError(NOT_SUPPORTED)
        return [int(gpu.mig is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: FakeGPU) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGPU, index: int) -> FakeGPU:
        slices = gpu.mig or []
        if index >= len(slices) or slices[index] is None:
            raise FakeNVMLError(NOT_FOUND)
        return slices[index]

    def nvmlDeviceGetGpuInstanceId(self, gpu: FakeGPU) -> int:
        return _had(gpu.instance)

    def nvmlDeviceGetNvLinkState(self, gpu: FakeGPU, link: int) -> int:
        if link not in gpu.nvlinks and link not in gpu.down:
            raise FakeNVMLError(NOT_SUPPORTED)
        return int(link in gpu.nvlinks)

    def nvmlDeviceGetNvLinkRemotePciInfo(self, gpu: FakeGPU, link: int) -> Any:
        return SimpleNamespace(busId=gpu.nvlinks[link][0])

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, gpu: FakeGPU, link: int) -> int:
        return gpu.nvlinks[link][1]

    def nvmlDeviceGetGpuFabricInfoV(self, gpu: FakeGPU, info: Any) -> int:
        """`info`: a reference to the driver's structure, which it fills in."""
        info._obj.state, info._obj.status = gpu.fabric
        return 0

    def nvmlDeviceGetTopologyCommonAncestor(self, a: FakeGPU, b: FakeGPU) -> int:
        if b.uuid not in a.ancestors:
            raise FakeNVMLError(NOT_SUPPORTED)
        return a.ancestors[b.uuid]


def _had(figure: Any) -> Any:
    if figure is None:
        raise FakeNVMLError(NOT_SUPPORTED)
    return figure
