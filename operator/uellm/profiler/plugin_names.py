"""How a simulated device plugin names its devices to the kubelet: as one of the plugins that clusters have. Pure.

Standard library only: the source of real GPUs needs nothing more, so that it runs on a bare machine too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SHARED_SUFFIX = ".shared"
_LAST_DIGITS = re.compile(r"\d{1,3}$")


Scheme = Literal["UUID", "Index", "GKE", "HAMi", "Opaque"]


@dataclass(frozen=True, slots=True)
class DevicePluginNames:
    """What a simulated device plugin calls its devices."""

    names: Scheme = "UUID"
    """UUID: NVIDIA's plugin. Index: the driver's index. GKE: the device file. HAMi: always a number behind the UUID.
    Opaque: names that mean nothing to anybody else."""
    replicas: int = 1
    """To how many pods each device is lent at once."""
    renamed: bool = False
    """Whether the resource of lent devices has another name."""

    def resource(self, name: str) -> str:
        """The extended resource under which devices of the resource `name` are offered."""
        return f"{name}{SHARED_SUFFIX}" if self.renamed else name

    def of(self, device: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of one device, an entry of `status.devices`: one for each pod that may have it."""
        uuid, index, separator = device["uuid"], device["index"], "::"
        match self.names:
            case "HAMi":
                return tuple(f"{uuid}-{share}" for share in range(self.replicas))
            case "GKE":
                whole, separator = device_file(device), "/vgpu"
            case "Index":
                whole = f"{index}:{_instance(device)}" if device.get("mig") else str(index)
            case "Opaque":
                whole = f"vgpu-{uuid[-1:]}{index}"
            case "UUID":
                whole = uuid
        return (whole,) if self.replicas == 1 else tuple(f"{whole}{separator}{n}" for n in range(self.replicas))


def device_file(device: Mapping[str, Any]) -> str:
    """The device file on which GKE's names are built.

    >>> device_file({"index": 0, "uuid": "MIG-07", "mig": True})
    'nvidia0/gi7'
    """
    file = f"nvidia{device['index']}"
    return f"{file}/gi{_instance(device)}" if device.get("mig") else file


def _instance(device: Mapping[str, Any]) -> int:
    """The number of a slice on its GPU, which a description does not have: the last digits of its UUID."""
    digits = _LAST_DIGITS.search(device["uuid"])
    return int(digits[0]) if digits else 0
