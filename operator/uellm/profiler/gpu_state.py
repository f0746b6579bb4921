"""The state of a GPU as its driver reports it, with the fields of GPUNodeProfile.status.devices.

Each figure stands for itself: one that the driver does not report, or a call that fails, leaves out its field alone.

Xid errors are not among them. NVML delivers them only to a process that waits for events and so keeps the driver open,
which blocks driver upgrades; the kernel's log, where they also are, takes a capability that the profiler does not have.
What an Xid leaves behind is seen here (uncorrectable errors, rows to be remapped, a lost GPU), and NVIDIA's device
plugin, which waits for them, no longer offers the GPU to the kubelet (see offered.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from uellm.profiler.nvml_library import ask

FABRIC_STATES = {1: "NotStarted", 2: "InProgress", 3: "Completed"}
"""nvmlGpuFabricState_t. GPUs without a fabric manager, and those before Hopper, answer 0: not supported."""
_UNCORRECTED, _VOLATILE, _AGGREGATE = 1, 0, 1  # nvmlMemoryErrorType_t, nvmlEccCounterType_t

SLOWDOWNS = {
    0x8: "Hardware",
    0x20: "SoftwareThermal",
    0x40: "HardwareThermal",
    0x80: "PowerBrake",
}
"""nvmlClocksEventReasons that tell of a trouble. A power cap, an idle GPU or clocks set by a person are none."""


def gpu_state(nvml: Any, gpu: Any) -> dict[str, Any]:
    """`powerLimitWatts` and its default, `pcie`, `memoryErrors` and `clocksSlowedBy`, as far as the driver tells."""
    return _known(
        powerLimitWatts=_watts(ask(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, gpu)),
        powerLimitDefaultWatts=_watts(ask(nvml, nvml.nvmlDeviceGetPowerManagementDefaultLimit, gpu)),
        pcie=_pcie(nvml, gpu) or None,
        memoryErrors=_memory_errors(nvml, gpu) or None,
        clocksSlowedBy=_slowdowns(ask(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu)) or None,
    )


def fabric(nvml: Any, gpu: Any) -> dict[str, Any] | None:
    """`fabric` of a GPU on an NVSwitch; None where it has none, or the driver does not tell."""
    info = nvml.c_nvmlGpuFabricInfo_v2_t()
    if ask(nvml, nvml.nvmlDeviceGetGpuFabricInfoV, gpu, ctypes.byref(info)) is None:
        return None
    state = FABRIC_STATES.get(info.state)
    return None if state is None else _known(state=state, errorCode=info.status or None)


def _pcie(nvml: Any, gpu: Any) -> Mapping[str, Any]:
    return _known(
        width=ask(nvml, nvml.nvmlDeviceGetCurrPcieLinkWidth, gpu) or None,
        maxWidth=ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkWidth, gpu) or None,
        generation=ask(nvml, nvml.nvmlDeviceGetCurrPcieLinkGeneration, gpu) or None,
        maxGeneration=ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, gpu) or None,
    )


def _memory_errors(nvml: Any, gpu: Any) -> Mapping[str, Any]:
    mode = ask(nvml, nvml.nvmlDeviceGetEccMode, gpu)
    rows = ask(nvml, nvml.nvmlDeviceGetRemappedRows, gpu)
    # GPUs before Ampere retire pages instead of remapping rows.
    retirement = ask(nvml, nvml.nvmlDeviceGetRetiredPagesPendingStatus, gpu) if rows is None else None
    return _known(
        ecc=None if mode is None else bool(mode[0]),
        uncorrectable=ask(nvml, nvml.nvmlDeviceGetTotalEccErrors, gpu, _UNCORRECTED, _VOLATILE),
        uncorrectableEver=ask(nvml, nvml.nvmlDeviceGetTotalEccErrors, gpu, _UNCORRECTED, _AGGREGATE),
        remapPending=None if rows is None else bool(rows[2]),
        remapFailed=None if rows is None else bool(rows[3]),
        retirementPending=None if retirement is None else bool(retirement),
    )


def _slowdowns(reasons: int | None) -> list[str]:
    return [name for bit, name in SLOWDOWNS.items() if (reasons or 0) & bit]


def _watts(milliwatts: int | None) -> int | None:
    return None if milliwatts is None else int(milliwatts) // 1000


def _known(**figures: Any) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if value is not None}
