"""ResourceSlices of NVIDIA's DRA driver as the GPUs that they publish. Pure.

A driver describes the GPUs of a node in a pool of slices. A newer generation of a pool replaces all slices of older
ones. A device with a taint is not given to new claims, so it counts as not published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from uellm.api.scalars import quantity
from uellm.errors import BadInput
from uellm.hardware import DRA_DRIVER, PCIE_ROOT, Attribute, PublishedGpu

Object = Mapping[str, Any]
_SELECTABLE = ("architecture", "brand", "cudaComputeCapability", "productName")
_BLOCKING = ("NoSchedule", "NoExecute")


class DeviceRef(NamedTuple):
    """A device as the result of an allocation names it."""

    driver: str
    pool: str
    device: str


class SliceDevice(NamedTuple):
    """A GPU of a slice."""

    ref: DeviceRef
    node: str
    facts: PublishedGpu
    blocked: bool
    """It is given to no new claim."""


def is_of_gpus(resource_slice: Object) -> bool:
    """Whether the slice is NVIDIA's."""
    return bool((resource_slice.get("spec") or {}).get("driver") == DRA_DRIVER)


def gpus_of(slices: Iterable[Object]) -> list[SliceDevice]:
    """The whole GPUs that the slices publish, ordered by node and name; those of superseded slices are left out."""
    specs = [each["spec"] for each in slices if is_of_gpus(each)]
    newest: dict[str, int] = {}
    for spec in specs:
        pool = spec["pool"]
        newest[pool["name"]] = max(newest.get(pool["name"], 0), int(pool.get("generation") or 0))
    found = [
        device
        for spec in specs
        if int(spec["pool"].get("generation") or 0) == newest[spec["pool"]["name"]]
        for entry in spec.get("devices") or ()
        for device in _gpu(spec, entry)
    ]
    return sorted(found, key=lambda device: (device.node, device.ref))


def _gpu(spec: Object, entry: Object) -> list[SliceDevice]:
    """The entry, if it is a whole GPU whose uuid and memory are published."""
    attributes = {_own(name): value for name, value in (entry.get("attributes") or {}).items()}
    memory = {_own(name): value for name, value in (entry.get("capacity") or {}).items()}.get("memory") or {}
    uuid, kind = (_value(attributes.get(name)) for name in ("uuid", "type"))
    if not uuid or kind != "gpu" or "value" not in memory:
        return []
    try:
        memory_bytes = int(quantity(str(memory["value"])))
    except BadInput:
        return []
    blocked = any(taint.get("effect") in _BLOCKING for taint in entry.get("taints") or ())
    known = (_attribute(name, attributes.get(name)) for name in _SELECTABLE)
    facts = PublishedGpu(uuid, memory_bytes, tuple(filter(None, known)), _value(attributes.get(PCIE_ROOT)))
    ref = DeviceRef(spec["driver"], spec["pool"]["name"], entry["name"])
    return [SliceDevice(ref, str(spec.get("nodeName") or ""), facts, blocked)]


def _own(name: str) -> str:
    """A name of the driver's own domain without it; others stay whole."""
    return name.removeprefix(f"{DRA_DRIVER}/")


def _value(value: Object | None) -> str:
    return str((value or {}).get("string") or "")


def _attribute(name: str, value: Object | None) -> Attribute | None:
    if value and isinstance(value.get("string"), str):
        return Attribute(name, "string", value["string"])
    return Attribute(name, "version", str(value["version"])) if value and value.get("version") else None
