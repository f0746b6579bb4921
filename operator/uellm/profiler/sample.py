"""An observation of a node's GPUs at one moment, with the fields of GPUNodeProfile.status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from uellm.errors import CannotBeDone
from uellm.profiler.plugin_names import DevicePluginNames

NVML = "NVML"
SIMULATED = "Simulated"


class DeviceFailure(NamedTuple):
    """A device that is present and does not answer: a CamelCase reason, and the cause in a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class Sample:
    """One observation. `devices` and `links` are entries of GPUNodeProfile.status, without allocations."""

    source: str
    devices: tuple[Mapping[str, Any], ...]
    links: tuple[Mapping[str, Any], ...] = ()
    driver_version: str = ""
    cuda_version: str = ""
    failed: Mapping[int, DeviceFailure] = field(default_factory=dict)
    """By the driver's index, the only identity that a lost GPU has left."""
    busy: frozenset[str] = frozenset()
    """UUIDs of devices that any process uses."""
    used_bytes: Mapping[str, int] = field(default_factory=dict)
    """Memory in use by UUID, without what the driver keeps for itself; devices for which it is known."""
    measured_on: str = "GPU"
    """What the rates are measured on: GPU, or CPU for simulated GPUs; empty where a description has them."""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """UUIDs by other names that a device plugin may use: `nvidia0`, or the GPU that MIG slices belong to."""
    plugin_names: DevicePluginNames = field(default_factory=DevicePluginNames)
    """What a simulated device plugin calls the devices."""


class SourceError(CannotBeDone):
    """The source failed. `reason` becomes the reason of the profile's condition Ready."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoGPUs(SourceError):
    """There is nothing to profile: no driver, or no description. On a node without GPUs this is not an error."""

    hidden = False
    """The node has GPUs all the same, as its PCI bus shows."""


class DriverChanged(SourceError):
    """The driver was replaced while this process ran: only a new process in a new container can load its library."""


class Source(Protocol):
    """Where samples come from."""

    def sample(self) -> Sample:
        """Observe once; blocks. Raises SourceError or BadInput."""
        ...
