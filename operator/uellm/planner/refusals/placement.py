"""Why layers cannot be placed on given devices. Sizes are in bytes. Devices have their ids in the instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from uellm.planner.refusals.kinds import PlanRefusal


class PlacementRefusal(PlanRefusal):
    """A refusal of the solver."""

    __slots__ = ()

    def renamed(self, names: Mapping[str, str]) -> PlacementRefusal:
        """The same with other names of the devices."""
        return self


@dataclass(frozen=True, slots=True)
class TooManyStages(PlacementRefusal):
    """More stages than devices or layers."""

    stages: int
    devices: int
    layers: int


@dataclass(frozen=True, slots=True)
class EmptyStage(PlacementRefusal):
    """A given split leaves a stage without a layer."""

    stages: int
    layers: int


@dataclass(frozen=True, slots=True)
class TooFewDevices(PlacementRefusal):
    """A given split has more stages than there are devices."""

    stages: int
    devices: int


@dataclass(frozen=True, slots=True)
class LayerTooLarge(PlacementRefusal):
    """No device has room for the layer; `device` is the one with the most room, `have_bytes` of it."""

    layer: int | None
    """None: no layer fits."""
    need_bytes: int
    have_bytes: int
    device: str

    def renamed(self, names: Mapping[str, str]) -> LayerTooLarge:
        """The same with another name of the device."""
        return replace(self, device=names[self.device])


@dataclass(frozen=True, slots=True)
class MemoryShort(PlacementRefusal):
    """The largest devices together have less room than is needed. `device` is the largest."""

    need_bytes: int
    have_bytes: int
    missing_bytes: int
    devices: int
    of: int
    """Number of devices that exist."""
    device: str

    def renamed(self, names: Mapping[str, str]) -> MemoryShort:
        """The same with another name of the device."""
        return replace(self, device=names[self.device])


@dataclass(frozen=True, slots=True)
class NoSplit(PlacementRefusal):
    """The devices have enough room in total, but whole layers leave gaps. `device` is the largest."""

    need_bytes: int
    have_bytes: int
    first_bytes: int
    last_bytes: int
    devices: int
    exactly: bool
    """Whether all `devices` had to be used."""
    device: str
    device_bytes: int

    def renamed(self, names: Mapping[str, str]) -> NoSplit:
        """The same with another name of the device."""
        return replace(self, device=names[self.device])


@dataclass(frozen=True, slots=True)
class StageTooLarge(PlacementRefusal):
    """A stage of a given split fits on none of the remaining devices."""

    stage: int
    layers: int
    need_bytes: int
    have_bytes: int


@dataclass(frozen=True, slots=True)
class SearchCutShort(PlacementRefusal):
    """The search was cut short: it found no placement, but did not prove that there is none."""

    kinds: int
    """Kinds of devices."""
    cause: PlacementRefusal

    def renamed(self, names: Mapping[str, str]) -> SearchCutShort:
        """The same with other names in its cause."""
        return replace(self, cause=self.cause.renamed(names))


@dataclass(frozen=True, slots=True)
class BaselineFails(PlacementRefusal):
    """A baseline policy finds no placement although the optimal policy has one."""

    policy: str
    devices: tuple[str, ...]
    layers: tuple[int, ...]

    def renamed(self, names: Mapping[str, str]) -> BaselineFails:
        """The same with other names of the devices."""
        return replace(self, devices=tuple(names[device] for device in self.devices))
