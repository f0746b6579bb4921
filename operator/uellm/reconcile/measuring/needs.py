"""What of a node is to be measured, by its GPUNodeProfile. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import permutations
from typing import Any, NamedTuple

from uellm.api.names import MEASURE_ANNOTATION
from uellm.hardware import GPU_RESOURCE
from uellm.reconcile.drift import digest

Device = Mapping[str, Any]
_LONGEST_REQUEST = 64


class MeasuringNeed(NamedTuple):
    """What a measuring pod is to do."""

    on: str
    """GPU, or CPU for simulated devices."""
    resource: str
    """Extended resource by which it asks for the devices."""
    gpus: int
    """All that are free: so the kubelet can give it no others, and links and groups are measured too."""
    request: str
    """The user's, from the annotation."""
    mark: str
    """Digest of all this, of the devices and of what their figures depend on."""


def need_of(profile: Mapping[str, Any]) -> MeasuringNeed | None:
    """What a pod could measure now; None where there is nothing left, or no free device to measure."""
    status = profile.get("status") or {}
    measurement: Mapping[str, Any] = status.get("measurement") or {}
    on = measured_on(status)
    if not on:
        return None
    request = str((profile["metadata"].get("annotations") or {}).get(MEASURE_ANNOTATION) or "")[:_LONGEST_REQUEST]
    requested = request != measurement.get("request", "")
    links = {(link["a"], link["b"]) for link in status.get("links") or () if "bytesPerSecond" in link}
    for resource, devices in sorted(_free(status.get("devices") or ()).items()):
        if requested or _has_gaps(devices, links):
            mark = digest([on, resource, request, status.get("driverVersion"), sorted(map(_what, devices))])
            if mark != measurement.get("finished"):
                return MeasuringNeed(on, resource, len(devices), request, mark)
    return None


def measured_on(status: Mapping[str, Any]) -> str:
    """What a node's rates are measured on; empty where they are described."""
    if status.get("source") == "NVML":
        return "GPU"
    return "CPU" if (status.get("measurement") or {}).get("on") == "CPU" else ""


def _free(devices: Iterable[Device]) -> dict[str, list[Device]]:
    """By resource: the whole devices that any pod could get now, and would get alone."""
    found: dict[str, list[Device]] = {}
    for device in devices:
        healthy = (device.get("health") or {}).get("state", "Healthy") == "Healthy"
        alone = device.get("shares", 1) == 1 and not device.get("mig")
        if healthy and alone and not device.get("allocatedTo"):
            found.setdefault(device.get("resourceName", GPU_RESOURCE), []).append(device)
    return found


def _has_gaps(devices: list[Device], links: set[tuple[str, str]]) -> bool:
    # What something outside the cluster uses would be measured too slow.
    idle = [device["uuid"] for device in devices if not device.get("memoryHeldBytes")]
    measured = {device["uuid"] for device in devices if (device.get("measured") or {}).get("measuredAt")}
    return any(uuid not in measured for uuid in idle) or any(pair not in links for pair in permutations(idle, 2))


def _what(device: Device) -> tuple[str, int]:
    return device["uuid"], device.get("powerLimitWatts") or 0
