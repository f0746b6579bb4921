"""A plan's requirements for a node."""

from __future__ import annotations

from collections.abc import Mapping
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
        if self.products:
            entry["products"] = list(self.products)
        return entry | ({"simulated": True} if self.simulated else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NodeNeeds:
        """The inverse of `to_dict`."""
        capability = data.get("capability")
        return cls(
            resource_name=str(data["resourceName"]),
            gpus=int(data["gpus"]),
            memory_mib=int(data["memoryMebibytes"]),
            smallest_mib=int(data["smallestMebibytes"]),
            capability=None if capability is None else (int(capability[0]), int(capability[1])),
            products=tuple(data.get("products") or ()),
            simulated=bool(data.get("simulated", False)),
        )
