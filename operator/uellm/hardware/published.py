"""A GPU as its DRA driver publishes it in a ResourceSlice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

AttributeKind = Literal["string", "version"]


class Attribute(NamedTuple):
    """An attribute by which a ResourceClaim may select a device."""

    name: str
    kind: AttributeKind
    value: str


@dataclass(frozen=True, slots=True)
class PublishedGpu:
    """What a driver says of a whole GPU."""

    uuid: str
    memory_bytes: int
    """All of its memory."""
    attributes: tuple[Attribute, ...] = ()
    """By name, without the uuid and what differs from GPU to GPU or with the driver's version."""
    pcie_root: str = ""
    """The PCIe root complex that it is attached to; empty where it is not published."""

    def attribute(self, name: str) -> Attribute | None:
        """The attribute of this name, or None."""
        return next((each for each in self.attributes if each.name == name), None)
