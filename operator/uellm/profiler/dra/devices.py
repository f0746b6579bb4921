"""The described GPUs as devices of a ResourceSlice, with the names and attributes of NVIDIA's driver. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from uellm.profiler.sample import Sample

BRAND = "Simulated"
_STANDARD = "resource.kubernetes.io"
_SAME_ROOT = ("PIX", "PXB", "PHB")
"""Links that do not leave a PCIe host bridge."""
_ARCHITECTURES = (
    ("12.", "Blackwell"),
    ("10.", "Blackwell"),
    ("9.", "Hopper"),
    ("8.9", "Ada Lovelace"),
    ("8.", "Ampere"),
    ("7.5", "Turing"),
    ("7.", "Volta"),
    ("6.", "Pascal"),
)


class PublishedDevice(NamedTuple):
    """A GPU under the name by which a claim gets it."""

    name: str
    uuid: str
    attributes: Mapping[str, Mapping[str, Any]]
    memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As in a ResourceSlice."""
        capacity = {"memory": {"value": str(self.memory_bytes)}}
        return {"name": self.name, "attributes": dict(self.attributes), "capacity": capacity}


def device_name(index: int) -> str:
    """The name of a whole GPU."""
    return f"gpu-{index}"


def published(sample: Sample) -> tuple[PublishedDevice, ...]:
    """The devices that claims can get, by index. Slices of a GPU (MIG) and faulty GPUs are left out."""
    roots = pcie_roots(sample)
    devices = sorted(sample.devices, key=lambda device: (device["index"], device["uuid"]))
    return tuple(
        PublishedDevice(
            device_name(device["index"]),
            device["uuid"],
            _attributes(device, sample, roots.get(device["uuid"], "")),
            device["memoryBytes"],
        )
        for device in devices
        if not device.get("mig") and (device.get("health") or {}).get("state", "Healthy") == "Healthy"
    )


def pcie_roots(sample: Sample) -> Mapping[str, str]:
    """The PCIe root of each GPU that has an address on the bus, by UUID, as in `pci0000:10`.

    A description has no roots, only links. GPUs whose link stays below one host bridge share a root; it is named by
    the lowest address among them.
    """
    places = {device["uuid"]: device["pciBusId"] for device in sample.devices if device.get("pciBusId")}
    group = {uuid: {uuid} for uuid in places}
    for link in sample.links:
        if link.get("kind") in _SAME_ROOT and link["a"] in group and link["b"] in group:
            joined = group[link["a"]] | group[link["b"]]
            group |= dict.fromkeys(joined, joined)
    return {uuid: _root(places[other] for other in members) for uuid, members in group.items()}


def version(text: str) -> str:
    """A semantic version, as the API requires: `9.0` -> `9.0.0`; `0.0.0` for what has no number.

    >>> version("580.65.06"), version("simulated")
    ('580.65.6', '0.0.0')
    """
    numbers = [str(int(number)) for number in re.findall(r"\d+", text)][:3]
    return ".".join([*numbers, *["0"] * (3 - len(numbers))])


def _root(places: Iterable[str]) -> str:
    domain, bus, _ = min(places).split(":", 2)
    return f"pci{domain[-4:]}:{bus}".lower()


def _attributes(device: Mapping[str, Any], sample: Sample, root: str) -> dict[str, dict[str, Any]]:
    capability = device.get("computeCapability") or ""
    architecture = next((name for prefix, name in _ARCHITECTURES if capability.startswith(prefix)), "Unknown")
    texts = {
        "type": "gpu",
        "uuid": device["uuid"],
        "productName": device.get("product", "")[:64],
        "brand": BRAND,
        "architecture": architecture,
        f"{_STANDARD}/pciBusID": device.get("pciBusId", ""),
        f"{_STANDARD}/pcieRoot": root,
    }
    versions = {
        "cudaComputeCapability": capability,
        "driverVersion": sample.driver_version,
        "cudaDriverVersion": sample.cuda_version,
    }
    return {
        **{name: {"string": text} for name, text in texts.items() if text},
        **{name: {"version": version(text)} for name, text in versions.items()},
    }
