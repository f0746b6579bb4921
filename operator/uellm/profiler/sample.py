"""What a source says about a node's GPUs at one moment, in the words of GPUNodeProfile.status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from uellm.errors import CannotBeDone

NVML = "NVML"
SIMULATED = "Simulated"


class DeviceFailure(NamedTuple):
    """A device that is there and does not answer: the reason in one word, the cause in a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class Sample:
    """One look. `devices` and `links` are entries of GPUNodeProfile.status, without who has the devices."""

    source: str
    devices: tuple[Mapping[str, Any], ...]
    links: tuple[Mapping[str, Any], ...] = ()
    driver_version: str = ""
    cuda_version: str = ""
    failed: Mapping[int, DeviceFailure] = field(default_factory=dict)
    """By the driver's index: a GPU that is lost has no other identity left."""
    busy: frozenset[str] = frozenset()
    """UUIDs of devices that some process computes on, whoever started it."""


class SourceError(CannotBeDone):
    """The source cannot be asked. `reason` is that of the profile's condition Ready."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoGPUs(SourceError):
    """There is nothing to profile here: no driver, or no description. Not an error of a node without GPUs."""


class DriverChanged(SourceError):
    """The driver was replaced under this process: only a new process (in a new container) can load its library."""


class Source(Protocol):
    """Where samples come from."""

    def sample(self) -> Sample:
        """Look once; blocks. Raises SourceError or BadInput."""
        ...
