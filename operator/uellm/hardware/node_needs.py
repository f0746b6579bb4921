"""What a node must be for the pods of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NodeNeeds:
    """What a node must be."""

    resource_name: str
    gpus: int
    """GPUs of the resource, at least."""
    memory_mib: int
    """Memory of every GPU, at least, where the node's GPUs are alike."""
    smallest_mib: int
    """Memory of the smallest GPU, at least, where they are not."""
    capability: tuple[int, int] | None = None
    """Compute capability, at least; None: any."""
    products: tuple[str, ...] = ()
    """Products of GPUs that meet the targets, where some other product with enough memory does not; empty: any."""
    simulated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; what makes no condition is left out."""
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
