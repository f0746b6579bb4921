"""What a pod's ResourceClaim asks for: a request for each stage of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StageRequest:
    """The GPUs of one stage."""

    name: str
    count: int
    selectors: tuple[str, ...]
    """CEL expressions; a device must satisfy all of them."""
    preferred: tuple[str, ...] = ()
    """Further expressions, the best first: GPUs that satisfy one of them are taken where they are free."""


@dataclass(frozen=True, slots=True)
class ClaimNeeds:
    """The requests in the order of the stages."""

    requests: tuple[StageRequest, ...]
    same_root: tuple[str, ...] = ()
    """Names of the requests whose GPUs must share a PCIe root complex."""


@dataclass(frozen=True, slots=True)
class StageNeeds:
    """What each GPU of a stage must be, whichever of the GPUs that the claim admits it is."""

    product: str
    memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """`stages[]` of plan.json."""
        return {"product": self.product, "memoryBytes": self.memory_bytes}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StageNeeds:
        """The inverse of `to_dict`."""
        return cls(str(data["product"]), int(data["memoryBytes"]))

    def met_by(self, product: str, memory_bytes: int) -> bool:
        """Whether a GPU of this product and memory will do."""
        return product == self.product and memory_bytes >= self.memory_bytes
