"""Devices, links and nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from uellm.hardware.names import GPU_RESOURCE, SLOWEST_LINK
from uellm.hardware.published import PublishedGpu

HEALTHY = "Healthy"


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as the node's profile describes it. Figures that were not measured are None, never a guess."""

    uuid: str
    index: int
    product: str
    memory_bytes: int
    """Memory for plans: the device's own, without what something outside the cluster holds."""
    resource_name: str = GPU_RESOURCE
    compute_capability: str = ""
    numa_node: int | None = None
    pci_bus_id: str = ""
    mig: bool = False
    power_limit_watts: int | None = None
    memory_free_bytes: int | None = None
    memory_held_bytes: int = 0
    """Memory that something outside the cluster holds."""
    shares: int = 1
    """To how many pods the device is lent at once."""
    bf16_flops_per_s: float | None = None
    fp16_flops_per_s: float | None = None
    fp8_flops_per_s: float | None = None
    memory_bytes_per_s: float | None = None
    rated: bool = False
    """Whether the rates are those of the product, because nobody measured this device."""
    measured_at: str = ""
    health_state: str = HEALTHY
    health_reason: str = ""
    allocated_to_pod_uid: str = ""
    excluded_reason: str = ""
    """The user's reason for excluding the device, from the profile's spec."""
    published: PublishedGpu | None = None
    """How its DRA driver publishes it, which is no part of a profile; None where none does."""
    claims_only: bool = False
    """Pods get it by claims alone: a DRA driver publishes it, and no device plugin offers it."""

    @property
    def usable(self) -> bool:
        """Healthy and not excluded. Says nothing about whether it is free."""
        return self.health_state == HEALTHY and not self.excluded_reason

    @property
    def as_built(self) -> Device:
        """The device with all of its memory: what another node of this kind has."""
        if not self.memory_held_bytes:
            return self
        return replace(self, memory_bytes=self.memory_bytes + self.memory_held_bytes, memory_held_bytes=0)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, excluded_reason: str = "") -> Device:
        """Read an entry of `GPUNodeProfile.status.devices`. Raises KeyError where uuid or memoryBytes is missing."""
        measured: Mapping[str, Any] = data.get("measured") or {}
        health: Mapping[str, Any] = data.get("health") or {}
        total, held = int(data["memoryBytes"]), int(data.get("memoryHeldBytes") or 0)
        return cls(
            uuid=data["uuid"],
            index=int(data.get("index", 0)),
            product=data.get("product", ""),
            memory_bytes=total - min(held, total),
            memory_held_bytes=min(held, total),
            shares=int(data.get("shares") or 1),
            resource_name=data.get("resourceName", GPU_RESOURCE),
            compute_capability=data.get("computeCapability", ""),
            numa_node=data.get("numaNode"),
            pci_bus_id=data.get("pciBusId", ""),
            mig=bool(data.get("mig", False)),
            power_limit_watts=data.get("powerLimitWatts"),
            memory_free_bytes=data.get("memoryFreeBytes"),
            bf16_flops_per_s=_giga(measured.get("bf16GigaflopsPerSecond")),
            fp16_flops_per_s=_giga(measured.get("fp16GigaflopsPerSecond")),
            fp8_flops_per_s=_giga(measured.get("fp8GigaflopsPerSecond")),
            memory_bytes_per_s=_number(measured.get("memoryBytesPerSecond")),
            measured_at=measured.get("measuredAt", ""),
            health_state=health.get("state", HEALTHY),
            health_reason=health.get("reason", ""),
            allocated_to_pod_uid=(data.get("allocatedTo") or {}).get("podUID", ""),
            excluded_reason=excluded_reason,
        )

    def to_dict(self) -> dict[str, Any]:
        """The entry of `GPUNodeProfile.status.devices`, without unknown fields."""
        measured = {
            "bf16GigaflopsPerSecond": _ungiga(self.bf16_flops_per_s),
            "fp16GigaflopsPerSecond": _ungiga(self.fp16_flops_per_s),
            "fp8GigaflopsPerSecond": _ungiga(self.fp8_flops_per_s),
            "memoryBytesPerSecond": None if self.memory_bytes_per_s is None else int(self.memory_bytes_per_s),
            "measuredAt": self.measured_at or None,
        }
        measured = {key: value for key, value in measured.items() if value is not None}
        entry = {
            "index": self.index,
            "uuid": self.uuid,
            "product": self.product,
            "computeCapability": self.compute_capability or None,
            "memoryBytes": self.memory_bytes + self.memory_held_bytes,
            "memoryHeldBytes": self.memory_held_bytes or None,
            "shares": self.shares if self.shares > 1 else None,
            "memoryFreeBytes": self.memory_free_bytes,
            "numaNode": self.numa_node,
            "pciBusId": self.pci_bus_id or None,
            "resourceName": self.resource_name,
            "mig": self.mig or None,
            "powerLimitWatts": self.power_limit_watts,
            "health": {"state": self.health_state, **({"reason": self.health_reason} if self.health_reason else {})},
            "measured": measured or None,
            "allocatedTo": {"podUID": self.allocated_to_pod_uid} if self.allocated_to_pod_uid else None,
        }
        return {key: value for key, value in entry.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Link:
    """A link from device `a` to device `b` (uuids), as measured in that direction."""

    a: str
    b: str
    kind: str = SLOWEST_LINK
    """One of LINK_KINDS."""

    bytes_per_s: float | None = None
    latency_s: float | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Link:
        """Read an entry of `GPUNodeProfile.status.links`."""
        nanoseconds = _number(data.get("latencyNanoseconds"))
        return cls(
            a=data["a"],
            b=data["b"],
            kind=data.get("kind", SLOWEST_LINK),
            bytes_per_s=_number(data.get("bytesPerSecond")),
            latency_s=None if nanoseconds is None else nanoseconds * 1e-9,
        )

    def to_dict(self) -> dict[str, Any]:
        """The entry of `GPUNodeProfile.status.links`."""
        entry = {
            "a": self.a,
            "b": self.b,
            "kind": self.kind,
            "bytesPerSecond": None if self.bytes_per_s is None else int(self.bytes_per_s),
            "latencyNanoseconds": None if self.latency_s is None else round(self.latency_s * 1e9),
        }
        return {key: value for key, value in entry.items() if value is not None}


@dataclass(frozen=True, slots=True)
class NetworkLink:
    """The network from a node to another one, as measured over TCP."""

    node: str
    """The other node."""
    bytes_per_s: float
    latency_s: float
    """One way: half of a round trip."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkLink:
        """Read an entry of `GPUNodeProfile.status.network`."""
        return cls(data["node"], float(data["bytesPerSecond"]), data["roundTripNanoseconds"] * 0.5e-9)

    def to_dict(self) -> dict[str, Any]:
        """The entry of `GPUNodeProfile.status.network`, without its time."""
        return {
            "node": self.node,
            "bytesPerSecond": int(self.bytes_per_s),
            "roundTripNanoseconds": round(self.latency_s * 2e9),
        }


@dataclass(frozen=True, slots=True)
class Node:
    """A node and its GPUs, in order of index."""

    name: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    source: str = "NVML"
    """NVML or Simulated."""
    driver_version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    network: tuple[NetworkLink, ...] = field(default=(), compare=False)
    """To other nodes, as far as it was measured, ordered by their names. Nodes that differ in it alone are equal: a
    measurement calls for no new plan, and the next one counts with it."""

    @property
    def simulated(self) -> bool:
        """Whether the GPUs come from a file instead of a measurement."""
        return self.source == "Simulated"

    @classmethod
    def from_profile(cls, profile: Mapping[str, Any]) -> Node:
        """Read a whole GPUNodeProfile document (a plain dict, as from YAML or the API server)."""
        status: Mapping[str, Any] = profile.get("status") or {}
        spec: Mapping[str, Any] = profile.get("spec") or {}
        excluded = {entry["uuid"]: entry.get("reason") or "excluded" for entry in spec.get("excludedDevices") or ()}
        devices = [
            Device.from_dict(entry, excluded_reason=excluded.get(entry["uuid"], ""))
            for entry in status.get("devices") or ()
        ]
        return cls(
            name=profile["metadata"]["name"],
            devices=tuple(sorted(devices, key=lambda device: (device.index, device.uuid))),
            links=tuple(Link.from_dict(entry) for entry in status.get("links") or ()),
            source=status.get("source", "NVML"),
            driver_version=status.get("driverVersion", ""),
            network=tuple(
                NetworkLink.from_dict(entry)
                for entry in sorted(status.get("network") or (), key=lambda entry: entry["node"])
            ),
        )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _giga(value: Any) -> float | None:
    return None if value is None else float(value) * 1e9


def _ungiga(flops_per_s: float | None) -> int | None:
    return None if flops_per_s is None else round(flops_per_s / 1e9)
