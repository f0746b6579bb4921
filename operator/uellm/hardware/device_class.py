"""Classes of GPUs: what a GPU is, without its identity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from uellm.hardware.types import Device

_STEPS_PER_DECADE = 80
"""Preferred numbers of the series R80: steps of 3 %, as the planner's levels have. Measurements of equal GPUs differ by
less."""


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """GPUs of one product, memory, compute capability and resource, with the rates that are typical of them."""

    typical: Device
    """A device of the class: no uuid, index 0, median rates, rounded down to a step."""

    def to_dict(self) -> dict[str, Any]:
        """`classes[]` of plan.json."""
        entry = self.typical.to_dict()
        return {name: value for name, value in entry.items() if name not in ("uuid", "index", "health")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeviceClass:
        """The inverse of `to_dict`."""
        return cls(Device.from_dict({**data, "uuid": ""}))

    def differs_by(self, product: str, memory_bytes: int) -> float | None:
        """The share by which a GPU's memory differs from that of the class; None for another product."""
        own = self.typical
        return None if product != own.product else abs(memory_bytes - own.memory_bytes) / max(1, own.memory_bytes)


def classes_of(devices: Iterable[Device]) -> tuple[DeviceClass, ...]:
    """The classes of these devices, ordered by what they are."""
    members: dict[tuple[str, int, str, str, bool], list[Device]] = {}
    for device in devices:
        members.setdefault(_what(device), []).append(device)
    return tuple(DeviceClass(_typical(members[what])) for what in sorted(members))


def _what(device: Device) -> tuple[str, int, str, str, bool]:
    return device.product, device.memory_bytes, device.compute_capability, device.resource_name, device.mig


def _typical(devices: list[Device]) -> Device:
    first = devices[0]
    return Device(
        uuid="",
        index=0,
        product=first.product,
        memory_bytes=first.memory_bytes,
        resource_name=first.resource_name,
        compute_capability=first.compute_capability,
        mig=first.mig,
        bf16_flops_per_s=_median(device.bf16_flops_per_s for device in devices),
        fp16_flops_per_s=_median(device.fp16_flops_per_s for device in devices),
        memory_bytes_per_s=_median(device.memory_bytes_per_s for device in devices),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _rounded_down(median(known)) if known else None


def _rounded_down(rate: float) -> float:
    """So that two measurements of the same GPUs give the same class.

    >>> [_rounded_down(rate) for rate in (7.8e14, 7.9e14, 2e12, 2.04e12)]
    [772000000000000.0, 772000000000000.0, 2000000000000.0, 2000000000000.0]
    """
    if rate <= 0:
        return rate
    steps = math.floor(_STEPS_PER_DECADE * math.log10(rate) + 1e-9)
    return float(f"{10 ** (steps / _STEPS_PER_DECADE):.2e}")
