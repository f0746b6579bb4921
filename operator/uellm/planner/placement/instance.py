"""The input of the layer-placement problem, in the units of `uellm place`, and the checks of a user's JSON.

    cap_i = floor((memoryBytes - reservedBytes) / (layerBytes + layerKvBytes))
    cost  = a1 * (sum_i workPerByte * x_i * layerBytes / performance_i
                  + sum over consecutive stages of latencySeconds[d_i][d_i+1]) + a2 * (devices used)

Here cap_i is the number of layers that device i can hold and x_i the number that it gets. Layers of different sizes
are given as lists; sums over the layers then replace the products. `firstStageBytes` (embedding) and `lastStageBytes`
(LM head) take memory on the first and the last stage, and no time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from uellm.errors import BadInput

MOST_LAYERS = 4096
MOST_DEVICES = 4096
Number = int | float


@dataclass(frozen=True, slots=True)
class PlaceDevice:
    """A device of an instance."""

    id: str
    """Unique in the instance. Equal placements are ordered by it."""
    memory_bytes: Number
    performance: Number
    """Work per second, in the unit of `work_per_byte`; weight bytes per second if that is 1."""
    reserved_bytes: Number = 0
    """Memory that is not available to layers."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One placement problem: L layers on at most n devices."""

    layer_bytes: tuple[Number, ...]
    """[L]: weight bytes."""
    layer_kv_bytes: tuple[Number, ...]
    """[L]: KV-cache bytes."""
    devices: tuple[PlaceDevice, ...]
    """[n]."""
    latency_s: tuple[tuple[Number, ...], ...]
    """[n, n]: seconds of a hop from device i to device j; it may be asymmetric."""
    first_stage_bytes: Number = 0
    """Memory on the first stage besides its layers."""
    last_stage_bytes: Number = 0
    """Memory on the last stage besides its layers."""
    work_per_byte: Number = 1.0
    """Work per weight byte, in the unit of `PlaceDevice.performance`."""
    a1: Number = 1.0
    """Weight of latency in the cost."""
    a2: Number = 0.0
    """Weight of each used device in the cost."""

    @property
    def layers(self) -> int:
        """L, the number of layers to place."""
        return len(self.layer_bytes)

    @classmethod
    def from_dict(cls, data: Any) -> Instance:
        """Read the JSON of `uellm place`. Raises BadInput with the path of the field at fault."""
        if not isinstance(data, Mapping):
            raise BadInput("instance", "must be a JSON object")
        layers = _count(data, "layers")
        devices = _devices(data)
        return cls(
            layer_bytes=_by_layer(data, "layerBytes", layers, least_exclusive=True),
            layer_kv_bytes=_by_layer(data, "layerKvBytes", layers, default=0),
            devices=devices,
            latency_s=_latency(data, len(devices)),
            first_stage_bytes=_number(data, "firstStageBytes", 0),
            last_stage_bytes=_number(data, "lastStageBytes", 0),
            work_per_byte=_number(data, "workPerByte", 1.0),
            a1=_number(data, "a1", 1.0),
            a2=_number(data, "a2", 0.0),
        )


def exact(value: Number) -> Fraction:
    """The number as a rational, so that sums do not depend on their order."""
    return Fraction(value)


def _count(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_LAYERS:
        raise BadInput(name, f"must be a whole number from 1 to {MOST_LAYERS}, not {_shown(value)}")
    return value


def _checked(field: str, value: Any, *, positive: bool = False) -> Number:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not _finite(value) or value < 0 or (positive and value == 0):
        raise BadInput(field, f"must be a {'positive' if positive else 'non-negative'} number, not {_shown(value)}")
    return value  # type: ignore[no-any-return]


def _finite(value: Number) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _shown(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _number(data: Mapping[str, Any], name: str, default: Number) -> Number:
    return _checked(name, data.get(name, default))


def _by_layer(
    data: Mapping[str, Any], name: str, layers: int, *, default: Number | None = None, least_exclusive: bool = False
) -> tuple[Number, ...]:
    value = data.get(name, default)
    if not isinstance(value, list | tuple):
        return (_checked(name, value, positive=least_exclusive),) * layers
    if len(value) != layers:
        raise BadInput(name, f"has {len(value)} entries for {layers} layers")
    return tuple(_checked(f"{name}[{i}]", entry, positive=least_exclusive) for i, entry in enumerate(value))


def _devices(data: Mapping[str, Any]) -> tuple[PlaceDevice, ...]:
    entries = data.get("devices")
    if not isinstance(entries, list | tuple) or not 1 <= len(entries) <= MOST_DEVICES:
        raise BadInput("devices", f"must be a list of 1 to {MOST_DEVICES} devices")
    devices = tuple(_device(f"devices[{index}]", entry) for index, entry in enumerate(entries))
    seen: set[str] = set()
    for index, device in enumerate(devices):
        if device.id in seen:
            raise BadInput(f"devices[{index}].id", f"{device.id!r} is there twice")
        seen.add(device.id)
    return devices


def _device(path: str, entry: Any) -> PlaceDevice:
    if not isinstance(entry, Mapping):
        raise BadInput(path, "must be an object with id, memoryBytes and performance")
    name = entry.get("id")
    if not isinstance(name, str) or not name:
        raise BadInput(f"{path}.id", f"must be a non-empty string, not {_shown(name)}")
    return PlaceDevice(
        id=name,
        memory_bytes=_checked(f"{path}.memoryBytes", entry.get("memoryBytes")),
        reserved_bytes=_checked(f"{path}.reservedBytes", entry.get("reservedBytes", 0)),
        performance=_checked(f"{path}.performance", entry.get("performance"), positive=True),
    )


def _latency(data: Mapping[str, Any], count: int) -> tuple[tuple[Number, ...], ...]:
    rows = data.get("latencySeconds")
    if rows is None and count == 1:
        return ((0,),)
    if not isinstance(rows, list | tuple) or len(rows) != count:
        raise BadInput("latencySeconds", f"must be a list of {count} rows, one for each device")
    return tuple(_row(f"latencySeconds[{index}]", row, count) for index, row in enumerate(rows))


def _row(path: str, row: Any, count: int) -> tuple[Number, ...]:
    if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != count:
        raise BadInput(path, f"must be a list of {count} numbers, one for each device")
    return tuple(_checked(f"{path}[{index}]", value) for index, value in enumerate(row))
