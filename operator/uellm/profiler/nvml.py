"""The driver as a source: devices, versions and links through NVML.

NVML is opened for each sample and closed after it: a process that keeps it open keeps the driver loaded and blocks
driver upgrades on the node.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uellm.profiler.links import bus_id, links
from uellm.profiler.nvml_library import Library
from uellm.profiler.sample import NVML, DeviceFailure, DriverChanged, NoGPUs, Sample, SourceError

SYSFS_PCI = Path("/sys/bus/pci/devices")
BUSY_MEMORY_SHARE = 0.1
"""A GPU with more memory in use than this share is busy: in a container the driver may hide other processes."""


_OR_DESCRIBE = ", or describe the GPUs in a file (--simulate)"

# nvmlReturn_t
_NO_PERMISSION, _DRIVER_NOT_LOADED, _LIBRARY_NOT_FOUND, _GPU_IS_LOST, _LIB_RM_VERSION_MISMATCH = 4, 9, 12, 15, 18


class NVMLSource:
    """Samples of this machine's GPUs. `library`: pynvml, unless a test passes its own."""

    def __init__(self, library: Library | None = None, *, sysfs_pci: Path = SYSFS_PCI) -> None:
        self._nvml: Any = library
        self._sysfs_pci = sysfs_pci

    def sample(self) -> Sample:
        """Open NVML, observe every GPU, close NVML."""
        nvml = self._library()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise _cannot_open(error) from error
        try:
            return self._look(nvml)
        except nvml.NVMLError as error:
            raise SourceError("NVMLFailed", f"NVML cannot list this node's GPUs: {error}") from error
        finally:
            nvml.nvmlShutdown()

    def _library(self) -> Any:
        if self._nvml is None:
            try:
                self._nvml = importlib.import_module("pynvml")
            except ModuleNotFoundError as error:
                raise NoGPUs(
                    "NoNVML", f"the Python package nvidia-ml-py is missing: install it{_OR_DESCRIBE}"
                ) from error
        return self._nvml

    def _look(self, nvml: Any) -> Sample:
        devices: list[dict[str, Any]] = []
        failed: dict[int, DeviceFailure] = {}
        whole: dict[str, Any] = {}
        busy: set[str] = set()
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                parts = _mig_devices(nvml, handle)
                entries = [self._entry(nvml, index, part, handle) for part in ([handle] if parts is None else parts)]
                if _busy(nvml, handle):
                    busy.update(entry["uuid"] for entry in entries)
                if parts is None:
                    whole[entries[0]["uuid"]] = handle
            except nvml.NVMLError as error:
                failed[index] = _failure(index, error)
            else:
                devices += entries
        return Sample(
            source=NVML,
            devices=tuple(devices),
            links=tuple(links(nvml, whole)),
            driver_version=nvml.nvmlSystemGetDriverVersion(),
            cuda_version=_cuda_version(nvml.nvmlSystemGetCudaDriverVersion_v2()),
            failed=failed,
            busy=frozenset(busy),
        )

    def _entry(self, nvml: Any, index: int, handle: Any, gpu: Any) -> dict[str, Any]:
        """The entry of `status.devices` for a GPU, or for the MIG slice `handle` of it."""
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        pci = bus_id(nvml.nvmlDeviceGetPciInfo(gpu).busId)
        entry = {
            "index": index,
            "uuid": nvml.nvmlDeviceGetUUID(handle),
            "product": nvml.nvmlDeviceGetName(handle),
            "computeCapability": "{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(gpu)),
            "memoryBytes": memory.total,
            "memoryFreeBytes": memory.free,
            "numaNode": self._numa_node(pci),
            "pciBusId": pci,
            "powerLimitWatts": _power_limit_watts(nvml, gpu),
            "mig": True if handle is not gpu else None,
        }
        return {name: value for name, value in entry.items() if value is not None}

    def _numa_node(self, pci: str) -> int | None:
        # NVML's own call answers only where the GPU is a NUMA node itself (Grace), not which one is near.
        try:
            node = int((self._sysfs_pci / pci / "numa_node").read_text())
        except (OSError, ValueError):
            return None
        return node if node >= 0 else None


def _mig_devices(nvml: Any, gpu: Any) -> list[Any] | None:
    """The slices of a GPU in MIG mode (perhaps none, so that nothing can run there); None: MIG is off."""
    try:
        enabled = nvml.nvmlDeviceGetMigMode(gpu)[0]
    except nvml.NVMLError:
        return None  # no MIG support; a lost GPU fails the next call
    return list(_slices(nvml, gpu)) if enabled else None


def _slices(nvml: Any, gpu: Any) -> Iterator[Any]:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        except nvml.NVMLError:
            continue  # indices of existing slices have gaps


def _busy(nvml: Any, gpu: Any) -> bool:
    try:
        if nvml.nvmlDeviceGetComputeRunningProcesses(gpu):
            return True
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
    except nvml.NVMLError:
        return True  # not known to be idle
    return bool(memory.total - memory.free > BUSY_MEMORY_SHARE * memory.total)


def _power_limit_watts(nvml: Any, gpu: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetEnforcedPowerLimit(gpu)) // 1000
    except nvml.NVMLError:
        return None  # boards without power management


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _failure(index: int, error: Any) -> DeviceFailure:
    if error.value == _GPU_IS_LOST:
        return DeviceFailure("GPULost", f"GPU {index} has fallen off the bus: drain the node and reset or replace it")
    return DeviceFailure("NVMLError", f"GPU {index} does not answer NVML: {error}")


def _cannot_open(error: Any) -> SourceError:
    if error.value == _LIBRARY_NOT_FOUND:
        return NoGPUs("NoDriver", f"no NVIDIA driver here (libnvidia-ml.so.1 not found): install it{_OR_DESCRIBE}")
    if error.value == _DRIVER_NOT_LOADED:
        return NoGPUs("NoDriver", f"the NVIDIA driver is installed and not loaded: load it{_OR_DESCRIBE}")
    if error.value == _LIB_RM_VERSION_MISMATCH:
        return DriverChanged("DriverChanged", f"the driver was replaced under this process, start it again: {error}")
    if error.value == _NO_PERMISSION:
        return SourceError("NVMLFailed", "no permission to open NVML: the process needs the /dev/nvidia* files")
    return SourceError("NVMLFailed", f"NVML cannot be opened: {error}")
