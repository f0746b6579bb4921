"""Which GPUs must not be planned on, by what their driver reports and by what they were. Pure.

A GPU is Quarantined while one of these holds, and Healthy again when none does. A figure that is not known is no fault.

    GPULost, GPUMissing     it does not answer the driver, or the driver no longer lists it (see status.py)
    UncorrectableErrors     errors of its memory that ECC did not correct, since the driver was loaded
    RowRemapFailed          a faulty row of memory has no replacement left: NVIDIA replaces such boards
    RowRemapPending         a faulty row of memory is in use until the next reset
    RetirementPending       the same of a page, on GPUs before Ampere
    FabricNotReady          its NVSwitches are not set up, for longer than a boot takes: CUDA does not start
    NVLinkDown              fewer NVLinks are up than at another time, or than on a twin of the same switch
    NotOffered              the kubelet offers it to no pod (see offered.py)
    PCIeDegraded            half of the lanes, or fewer, that it had at another time or that a twin has

Lanes count and generations do not. An idle GPU lowers its generation to save power and raises it with the next copy, so
a low one says nothing without a load of our own; its lanes stay. Fewer lanes than the maximum are no fault by
themselves: clouds wire eight of the sixteen lanes of some boards. Twins are GPUs of one product on one node whose slots
have the same number of lanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

Device = Mapping[str, Any]
_RESET = "drain the node and reset the GPU, or restart the node"
FABRIC_GRACE_S = 60.0
"""Every boot passes through a fabric that is not ready."""
ON_PURPOSE = "if that is on purpose, delete the node's GPUNodeProfile and it will be written anew"


class GpuFault(NamedTuple):
    """Why a device must not be used: a CamelCase reason, and the cause in a sentence."""

    reason: str
    message: str


def remembered(device: Device, before: Device, now: str) -> dict[str, Any]:
    """The device with the most lanes and NVLinks that it ever had, and since when its fabric is not ready.

    `before`: its last entry; empty if there is none.

    At another place on the bus, or cut into slices, it begins anew.
    """
    same = before.get("pciBusId") == device.get("pciBusId") and bool(before.get("mig")) == bool(device.get("mig"))
    past = before if same else {}
    found = dict(device)
    for section, current, most in (("pcie", "width", "widest"), ("nvlinks", "active", "most")):
        own, earlier = device.get(section) or {}, past.get(section) or {}
        known = [figure for figure in (own.get(current), own.get(most), earlier.get(most)) if figure is not None]
        if known:
            found[section] = {**own, most: max(known)}
    own = {name: value for name, value in (device.get("fabric") or {}).items() if name != "unreadySince"}
    if own and not _fabric_ready(own):
        found["fabric"] = {**own, "unreadySince": (past.get("fabric") or {}).get("unreadySince") or now}
    return found


def _fabric_ready(fabric: Mapping[str, Any]) -> bool:
    return fabric.get("state") == "Completed" and not fabric.get("errorCode")


def faults(devices: Sequence[Device], now: str) -> dict[str, GpuFault]:
    """The first fault of each device that has one, by UUID. `devices`: the node's, with what they were."""
    found = {device["uuid"]: next(_faults(device, devices, now), None) for device in devices}
    return {uuid: fault for uuid, fault in found.items() if fault is not None}


def _faults(device: Device, devices: Sequence[Device], now: str) -> Iterator[GpuFault]:
    twins = [other for other in devices if _twins(device, other)]
    yield from _memory(_name(device), device.get("memoryErrors") or {})
    yield from _fabric(device, now)
    yield from _nvlinks(device, twins)
    yield from _pcie(device, twins)


def _memory(name: str, errors: Mapping[str, Any]) -> Iterator[GpuFault]:
    if errors.get("remapFailed"):
        yield GpuFault("RowRemapFailed", f"{name} has a faulty row of memory and no spare one left: replace the board")
    if count := errors.get("uncorrectable"):
        were = "error of its memory was" if count == 1 else "errors of its memory were"
        yield GpuFault("UncorrectableErrors", f"{name}: {count} {were} not corrected since the last reset: {_RESET}")
    if errors.get("remapPending"):
        yield GpuFault("RowRemapPending", f"{name} has a faulty row of memory, which a reset replaces: {_RESET}")
    if errors.get("retirementPending"):
        yield GpuFault("RetirementPending", f"{name} has a faulty page of memory, which a reset retires: {_RESET}")


def _fabric(device: Device, now: str) -> Iterator[GpuFault]:
    own = device.get("fabric") or {}
    if (since := own.get("unreadySince")) is None:
        return
    waited = datetime.fromisoformat(now) - datetime.fromisoformat(since)
    if waited.total_seconds() < FABRIC_GRACE_S:
        return
    error = f", NVML's error {own['errorCode']}" if "errorCode" in own else ""
    yield GpuFault(
        "FabricNotReady",
        f"{_name(device)}: NVSwitches are not set up ({own['state']}{error}) since {since}, so CUDA does not start: "
        "see that nvidia-fabricmanager runs on the node and has the driver's version",
    )


def _nvlinks(device: Device, twins: Sequence[Device]) -> Iterator[GpuFault]:
    own = device.get("nvlinks") or {}
    if (active := own.get("active")) is None:
        return
    if active < own.get("most", active):
        yield GpuFault(
            "NVLinkDown",
            f"{_name(device)} has {active} NVLinks up and had {own['most']}: check the link, its bridge and the fabric "
            f"manager; {ON_PURPOSE}",
        )
    # Bridges may join some GPUs and not others, but a switch has the same number of links to each.
    others = [links["active"] for twin in twins if (links := twin.get("nvlinks") or {}).get("switched")]
    if own.get("switched") and active < max(others, default=0):
        yield GpuFault(
            "NVLinkDown",
            f"{_name(device)} has {active} NVLinks up, and others of its product on the switch {max(others)}: check "
            "the fabric manager, then reset the GPU",
        )


def _pcie(device: Device, twins: Sequence[Device]) -> Iterator[GpuFault]:
    own = device.get("pcie") or {}
    if (width := own.get("width")) is None:
        return
    if 2 * width <= own.get("widest", width):
        yield GpuFault(
            "PCIeDegraded",
            f"{_name(device)} uses {width} PCIe lanes and used {own['widest']}: reseat it and check its riser; "
            f"{ON_PURPOSE}",
        )
    others = [
        link["width"]
        for twin in twins
        if "width" in (link := twin.get("pcie") or {}) and link.get("maxWidth") == own.get("maxWidth")
    ]
    if 2 * width <= max(others, default=0):
        yield GpuFault(
            "PCIeDegraded",
            f"{_name(device)} uses {width} PCIe lanes, and others of its product {max(others)}: reseat it and check "
            "its riser",
        )


def _twins(device: Device, other: Device) -> bool:
    whole = not device.get("mig") and not other.get("mig")
    return device is not other and whole and device.get("product", "") == other.get("product", "") != ""


def _name(device: Device) -> str:
    return f"GPU {device.get('index', 0)}"
