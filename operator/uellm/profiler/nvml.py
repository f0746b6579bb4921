"""The driver as a source: devices, versions and links through NVML.

NVML is opened for each sample and closed after it: a process that keeps it open keeps the driver loaded and blocks
driver upgrades on the node.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uellm.profiler.gpu_memory import MEMINFO, GpuMemory, gpu_memory
from uellm.profiler.gpu_state import fabric, gpu_state
from uellm.profiler.links import Linked, NVLinks, bus_id, links, nvlinks
from uellm.profiler.nvml_library import GPU_IS_LOST, RESET_REQUIRED, Library, ask
from uellm.profiler.sample import NVML, DeviceFailure, DriverChanged, NoGPUs, Sample, SourceError

SYSFS_PCI = Path("/sys/bus/pci/devices")
BUSY_MEMORY_SHARE = 0.1
"""A GPU with more memory in use than this share is busy: in a container the driver may hide other processes."""


_NVIDIA, _DISPLAY_CONTROLLER = "0x10de", "0x03"
"""Vendor, and begin of the class, of a PCI device."""
_OR_DESCRIBE = ", or describe the GPUs in a file (--simulate)"

# nvmlReturn_t
_NO_PERMISSION, _DRIVER_NOT_LOADED, _LIBRARY_NOT_FOUND, _LIB_RM_VERSION_MISMATCH = 4, 9, 12, 18


class NVMLSource:
    """Samples of this machine's GPUs. `library`: pynvml, unless a test passes its own."""

    def __init__(self, library: Library | None = None, *, sysfs_pci: Path = SYSFS_PCI, meminfo: Path = MEMINFO) -> None:
        self._nvml: Any = library
        self._sysfs_pci = sysfs_pci
        self._meminfo = meminfo

    def sample(self) -> Sample:
        """Open NVML, observe every GPU, close NVML."""
        nvml = self._library()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            found = _cannot_open(error)
            if isinstance(found, NoGPUs):
                found.hidden = _has_gpus(self._sysfs_pci)
            raise found from error
        try:
            return self._look(nvml)
        except nvml.NVMLError as error:
            raise SourceError("NVMLFailed", f"NVML cannot list this node's GPUs: {error}") from error
        finally:
            with suppress(nvml.NVMLError):
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
        seen, failed = list[_SeenGpu](), dict[int, DeviceFailure]()
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                seen.append(self._gpu(nvml, index))
            except nvml.NVMLError as error:
                failed[index] = _failure(index, error)
        return Sample(
            source=NVML,
            devices=tuple(entry for gpu in seen for entry in gpu.entries),
            links=tuple(links(nvml, {gpu.entries[0]["uuid"]: gpu.linked for gpu in seen if gpu.whole})),
            driver_version=ask(nvml, nvml.nvmlSystemGetDriverVersion) or "",
            cuda_version=_cuda_version(ask(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)),
            failed=failed,
            busy=frozenset(entry["uuid"] for gpu in seen if gpu.busy for entry in gpu.entries),
            used_bytes={uuid: used for gpu in seen for uuid, used in gpu.used_bytes.items()},
            aliases={name: uuids for gpu in seen for name, uuids in gpu.aliases.items()},
        )

    def _gpu(self, nvml: Any, index: int) -> _SeenGpu:
        """One GPU. Raises NVMLError where it is lost, or tells not even its name and memory."""
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        slices = _mig_devices(nvml, handle)
        pci = _bus_id(nvml, handle)
        numa = self._numa_node(pci) if pci else None
        connected = NVLinks() if slices is not None else nvlinks(nvml, handle)
        facts = {
            "index": index,
            "computeCapability": _capability(nvml, handle),
            "numaNode": numa,
            "pciBusId": pci or None,
            "mig": None if slices is None else True,
            "nvlinks": connected.to_dict(),
            "fabric": fabric(nvml, handle) if connected.switch else None,
            **gpu_state(nvml, handle),
        }
        parts = [handle] if slices is None else slices
        memories = [gpu_memory(nvml, part, self._meminfo) for part in parts]
        entries = [_entry(nvml, part, memory, facts) for part, memory in zip(parts, memories, strict=True)]
        used = [_used_bytes(nvml, part, memory) for part, memory in zip(parts, memories, strict=True)]
        return _SeenGpu(
            entries,
            Linked(handle, pci, connected),
            whole=slices is None,
            busy=_busy(nvml, handle, unified=any(memory.unified for memory in memories)),
            used_bytes={entry["uuid"]: bytes_ for entry, bytes_ in zip(entries, used, strict=True)},
            aliases=_aliases(nvml, handle, slices, [entry["uuid"] for entry in entries]),
        )

    def _numa_node(self, pci: str) -> int | None:
        # NVML's own call answers only where the GPU is a NUMA node itself (Grace), not which one is near.
        try:
            node = int((self._sysfs_pci / pci / "numa_node").read_text())
        except (OSError, ValueError):
            return None
        return node if node >= 0 else None


@dataclass(frozen=True)
class _SeenGpu:
    """A GPU: its entry of `status.devices`, or those of its MIG slices."""

    entries: list[dict[str, Any]]
    linked: Linked
    whole: bool
    busy: bool
    used_bytes: Mapping[str, int]
    aliases: Mapping[str, tuple[str, ...]]


def _entry(nvml: Any, part: Any, memory: GpuMemory, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a GPU, or of a MIG slice of it; `facts`: what holds for the GPU."""
    entry = {
        "uuid": nvml.nvmlDeviceGetUUID(part),
        "product": ask(nvml, nvml.nvmlDeviceGetName, part),
        "memoryBytes": memory.total,
        "memoryFreeBytes": memory.free,
        **facts,
    }
    return {name: value for name, value in entry.items() if value is not None}


def _mig_devices(nvml: Any, gpu: Any) -> list[Any] | None:
    """The slices of a GPU in MIG mode (perhaps none, so that nothing can run there); None: MIG is off."""
    mode = ask(nvml, nvml.nvmlDeviceGetMigMode, gpu)  # no answer: no MIG support
    return list(_slices(nvml, gpu)) if mode is not None and mode[0] else None


def _slices(nvml: Any, gpu: Any) -> Iterator[Any]:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        # Indices of existing slices have gaps.
        if (part := ask(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, index)) is not None:
            yield part


def _busy(nvml: Any, gpu: Any, *, unified: bool) -> bool:
    processes = ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, gpu)
    if unified and processes is not None:
        return bool(processes)  # every program uses its memory
    memory = ask(nvml, nvml.nvmlDeviceGetMemoryInfo, gpu)
    if processes is None or memory is None:
        return True  # not known to be idle
    return bool(processes) or bool(memory.total - memory.free > BUSY_MEMORY_SHARE * memory.total)


def _used_bytes(nvml: Any, part: Any, memory: GpuMemory) -> int:
    """Older drivers count what they keep for themselves, some hundred MiB, as used."""
    told = None if memory.unified else ask(nvml, nvml.nvmlDeviceGetMemoryInfo, part, nvml.nvmlMemory_v2)
    return int(memory.total - memory.free if told is None else told.used)


def _aliases(nvml: Any, gpu: Any, slices: Sequence[Any] | None, uuids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """UUIDs by the GPU's device file, as Google's plugin names GPUs and slices, and by the UUID of a GPU in slices."""
    whole = None if slices is None else ask(nvml, nvml.nvmlDeviceGetUUID, gpu)
    found = {} if whole is None else {str(whole): tuple(uuids)}
    if (minor := ask(nvml, nvml.nvmlDeviceGetMinorNumber, gpu)) is None:
        return found
    found[f"nvidia{minor}"] = tuple(uuids)
    for part, uuid in zip(slices or (), uuids, strict=False):
        if (instance := ask(nvml, nvml.nvmlDeviceGetGpuInstanceId, part)) is not None:
            found[f"nvidia{minor}/gi{instance}"] = (uuid,)
    return found


def _bus_id(nvml: Any, gpu: Any) -> str:
    pci = ask(nvml, nvml.nvmlDeviceGetPciInfo, gpu)
    return "" if pci is None else bus_id(pci.busId)


def _capability(nvml: Any, gpu: Any) -> str | None:
    capability = ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, gpu)
    return None if capability is None else "{}.{}".format(*capability)


def _cuda_version(number: int | None) -> str:
    return "" if number is None else f"{number // 1000}.{number % 1000 // 10}"


def _failure(index: int, error: Any) -> DeviceFailure:
    if error.value == GPU_IS_LOST:
        return DeviceFailure("GPULost", f"GPU {index} has fallen off the bus: drain the node and reset or replace it")
    if error.value == RESET_REQUIRED:
        return DeviceFailure(
            "GPUNeedsReset", f"GPU {index} has to be reset before it can be used: drain the node first"
        )
    return DeviceFailure("NVMLError", f"GPU {index} does not answer NVML: {error}")


def _has_gpus(sysfs_pci: Path) -> bool:
    """Whether the PCI bus has a display controller by NVIDIA. Containers see the node's bus."""
    with suppress(OSError):
        for device in sysfs_pci.iterdir():
            about = [(device / name).read_text().strip() for name in ("vendor", "class")]
            if about[0] == _NVIDIA and about[1].startswith(_DISPLAY_CONTROLLER):
                return True
    return False


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
