"""Which devices this container really has, by uuid.

`nvidia-smi -L` is asked first: it tells what the driver shows to this container, whichever way the devices came in
(environment variable, CDI, DRA). NVIDIA_VISIBLE_DEVICES is what it is checked against where it holds uuids, and the
only source on a simulated node, whose devices no driver knows.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from uellm.errors import PlanError

VARIABLE = "NVIDIA_VISIBLE_DEVICES"
NVIDIA_SMI = "nvidia-smi"
# The driver's first start on a node without persistence mode takes seconds a GPU.
NVIDIA_SMI_TIMEOUT_S = 60.0

_GPU_LINE = re.compile(r"^GPU \d+:.*\(UUID: (?P<uuid>[^)\s]+)\)")
# Begins with no slash and holds no `=`: the device plugin's way by mounts sets a path, and CDI has qualified names.
_UUID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/]*-[A-Za-z0-9._:/-]*")
_MIG_LINE = re.compile(r"^\s+MIG .*\(UUID: (?P<uuid>[^)\s]+)\)")


@dataclass(frozen=True)
class FoundDevices:
    """The devices' uuids in the order of their source, and which source that was."""

    uuids: tuple[str, ...]
    source: str
    """`nvidia-smi` or `NVIDIA_VISIBLE_DEVICES`."""


def find_devices(environment: Mapping[str, str], *, simulated: bool) -> FoundDevices:
    """The container's devices. Raises PlanError NoDevices, with what each source said, where there are none.

    `simulated` devices exist in the plan alone, so the machine's own driver is not asked about them.
    """
    variable = environment.get(VARIABLE)
    if simulated:
        return FoundDevices(
            _uuids_of_variable(variable, driver="not asked: the plan's devices are simulated"), VARIABLE
        )
    listed, problem = _ask_nvidia_smi(environment)
    if not listed:
        return FoundDevices(_uuids_of_variable(variable, driver=problem), VARIABLE)
    allocated = _uuids(variable)
    if not allocated:
        return FoundDevices(listed, NVIDIA_SMI)
    missing = [uuid for uuid in allocated if uuid not in listed]
    if missing:
        raise PlanError(
            "NoDevices",
            f"{VARIABLE} names {missing[0]}, which `nvidia-smi -L` does not list (it has {', '.join(listed)}): "
            "the GPU has left the driver or the container was started without it; check the node's GPU",
        )
    # A privileged container sees every GPU of its node; only the allocated ones are its own.
    return FoundDevices(tuple(uuid for uuid in listed if uuid in allocated), NVIDIA_SMI)


def parse_nvidia_smi(text: str) -> tuple[str, ...]:
    """The uuids of `nvidia-smi -L`; a GPU that is cut into MIG devices is listed by those, not by itself."""
    uuids: list[str] = []
    parent: str | None = None
    for line in text.splitlines():
        if match := _GPU_LINE.match(line):
            parent = match["uuid"]
            uuids.append(parent)
        elif match := _MIG_LINE.match(line):
            if parent in uuids:
                uuids.remove(parent)
            uuids.append(match["uuid"])
    return tuple(uuids)


def _ask_nvidia_smi(environment: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """The uuids, or none and what stood in the way."""
    program = shutil.which(NVIDIA_SMI, path=environment.get("PATH"))
    if program is None:
        return (), "not found in PATH"
    try:
        answer = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), str(error)
    if answer.returncode != 0:
        said = (answer.stderr or answer.stdout).strip().splitlines()
        return (), f"exit status {answer.returncode}" + (f", {said[0]}" if said else "")
    return parse_nvidia_smi(answer.stdout), "lists no GPU"


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
        how = "(CDI, mounts), which only nvidia-smi tells: add it to the image"
        return f"is `{value}`: the devices come in another way {how}"
    if value == "all":
        return "is `all`: that is every GPU of the node, not those of this pod; request GPUs by their resource name"
    return f"is `{value}`: not a list of uuids; set the device plugin's deviceIDStrategy to uuid"
