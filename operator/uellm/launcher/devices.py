"""Which devices this container really has, by uuid, and what they are.

`nvidia-smi -L` is asked first: it lists what the driver shows to this container, whichever way the devices came in
(environment variable, CDI, DRA). It is checked against NVIDIA_VISIBLE_DEVICES where that holds uuids. On a simulated
node, whose devices no driver knows, the variable is the only source, and the device plugin also passes what they are.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from uellm.documents import UnreadableDocument
from uellm.errors import PlanError
from uellm.hardware import SIMULATED_DEVICES_VARIABLE, Device
from uellm.launcher.driver import device_facts, parse_nvidia_smi, run_nvidia_smi
from uellm.planner.handover.device_facts import NO_FACTS, DeviceFacts

VARIABLE = "NVIDIA_VISIBLE_DEVICES"
NVIDIA_SMI = "nvidia-smi"

# Begins with no slash and holds no `=`: the device plugin's way by mounts sets a path, and CDI has qualified names.
_UUID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/]*-[A-Za-z0-9._:/-]*")


@dataclass(frozen=True)
class FoundDevices:
    """The devices' uuids in the order of their source, and which source that was."""

    uuids: tuple[str, ...]
    source: str
    """`nvidia-smi` or `NVIDIA_VISIBLE_DEVICES`."""
    facts: DeviceFacts = NO_FACTS
    """What the source knows about the devices; it may know nothing about some."""
    allocated: tuple[str, ...] = ()
    """The uuids in the order of NVIDIA_VISIBLE_DEVICES, where it holds them."""


def find_devices(environment: Mapping[str, str], *, simulated: bool) -> FoundDevices:
    """The container's devices. Raises PlanError NoDevices, with the answer of each source, where there are none, and
    DeviceLost where one that was allocated is not there.

    `simulated` devices exist in the plan alone, so the machine's own driver is not asked about them.
    """
    variable = environment.get(VARIABLE)
    if simulated:
        uuids = _uuids_of_variable(variable, driver="not asked: the plan's devices are simulated")
        return FoundDevices(uuids, VARIABLE, _handed_over(environment), uuids)
    listed, problem = _ask_nvidia_smi(environment)
    if not listed:
        uuids = _uuids_of_variable(variable, driver=problem)
        return FoundDevices(uuids, VARIABLE, allocated=uuids)
    known = {device.uuid: device for device in listed}
    allocated = _uuids(variable)
    missing = [uuid for uuid in allocated if uuid not in known]
    if missing:
        raise PlanError(
            "DeviceLost",
            f"{VARIABLE} names {missing[0]}, which `nvidia-smi -L` does not list (it has {', '.join(known)}): "
            "the GPU has left the driver or the container was started without it; check the node's GPU",
        )
    # A privileged container sees every GPU of its node; only the allocated ones are its own.
    own = tuple(uuid for uuid in known if not allocated or uuid in allocated)
    # Without the driver's figures a device is known by its uuid alone.
    described = {uuid: known[uuid] for uuid in own if known[uuid].product}
    return FoundDevices(own, NVIDIA_SMI, DeviceFacts(described), allocated)


def _handed_over(environment: Mapping[str, str]) -> DeviceFacts:
    text = environment.get(SIMULATED_DEVICES_VARIABLE)
    if not text:
        return NO_FACTS
    try:
        return DeviceFacts.from_json(text, SIMULATED_DEVICES_VARIABLE)
    except UnreadableDocument as error:
        raise PlanError("NoDevices", str(error)) from error


def _ask_nvidia_smi(environment: Mapping[str, str]) -> tuple[tuple[Device, ...], str]:
    """The devices, or none and the reason."""
    program = shutil.which(NVIDIA_SMI, path=environment.get("PATH"))
    if program is None:
        return (), "not found in PATH"
    listing, problem = run_nvidia_smi(program, "-L")
    if problem:
        return (), problem
    return device_facts(program, parse_nvidia_smi(listing)), "lists no GPU"


def _uuids(variable: str | None) -> tuple[str, ...]:
    """The entries of the variable where all are uuids, else none: `all`, `void`, indices and paths name nothing."""
    entries = tuple(entry.strip() for entry in (variable or "").split(",") if entry.strip())
    return tuple(dict.fromkeys(entries)) if all(map(_UUID.fullmatch, entries)) else ()


def _uuids_of_variable(variable: str | None, *, driver: str) -> tuple[str, ...]:
    if uuids := _uuids(variable):
        return uuids
    raise PlanError("NoDevices", f"{VARIABLE} {_why_no_uuids(variable)}; `nvidia-smi -L`: {driver}")


def _why_no_uuids(variable: str | None) -> str:
    value = (variable or "").strip()
    if variable is None:
        return "is not set: the container was given no GPU; request one, or run on a node whose device plugin works"
    if not value:
        return "is empty: the container was given no GPU"
    if value in ("void", "none") or value.startswith("/") or "=" in value:
        how = "(CDI, mounts), which only nvidia-smi lists: add it to the image"
        return f"is `{value}`: the devices come in another way {how}"
    if value == "all":
        return "is `all`: that is every GPU of the node, not those of this pod; request GPUs by their resource name"
    return f"is `{value}`: not a list of uuids; set the device plugin's deviceIDStrategy to uuid"
