"""A plan's requirements for a node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NodeNeeds:
    """The requirements for a node."""

    resource_name: str
    gpus: int
    """The least number of GPUs of the resource."""
    memory_mib: int
    """The least memory of every GPU, for nodes with identical GPUs."""
    smallest_mib: int
    """The least memory of the smallest GPU, for nodes with unlike GPUs."""
    capability: tuple[int, int] | None = None
    """The least compute capability; None: any."""
    capability_below: tuple[int, int] | None = None
    """The compute capability from which on the engine lacks a kernel; None: it lacks none."""
    products: tuple[str, ...] = ()
    """Products that meet the targets, if another product with enough memory does not; empty: any."""
    simulated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without requirements that are not set."""
        entry: dict[str, Any] = {
            "resourceName": self.resource_name,
            "gpus": self.gpus,
            "memoryMebibytes": self.memory_mib,
            "smallestMebibytes": self.smallest_mib,
        }
        if self.capability is not None:
            entry["capability"] = list(self.capability)
        if self.capability_below is not None:
            entry["capabilityBelow"] = list(self.capability_below)
        if self.products:
            entry["products"] = list(self.products)
        return entry | ({"simulated": True} if self.simulated else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NodeNeeds:
        """The inverse of `to_dict`."""
        return cls(
            resource_name=str(data["resourceName"]),
            gpus=int(data["gpus"]),
            memory_mib=int(data["memoryMebibytes"]),
            smallest_mib=int(data["smallestMebibytes"]),
            capability=_version(data.get("capability")),
            capability_below=_version(data.get("capabilityBelow")),
            products=tuple(data.get("products") or ()),
            simulated=bool(data.get("simulated", False)),
        )


def _version(parts: Sequence[Any] | None) -> tuple[int, int] | None:
    return None if parts is None else (int(parts[0]), int(parts[1]))
