"""Composes GPUNodeProfile.status from the observations. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from uellm import __version__
from uellm.api import parse
from uellm.api.gpunodeprofile import MOST_DEVICES, GPUNodeProfileStatus
from uellm.hardware.types import HEALTHY
from uellm.profiler.health import ON_PURPOSE, GpuFault, faults, remembered
from uellm.profiler.sample import DeviceFailure, Sample, SourceError

READY = "Ready"
_TEXT_LENGTH = 256  # of the API's type Text
Status = Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """All input of a status. `trouble`: why the source failed the last time; the sample is then older."""

    sample: Sample
    pod_uids: Mapping[str, str] = field(default_factory=dict)
    resource_names: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measured_links: Mapping[tuple[str, ...], Mapping[str, Any]] = field(default_factory=dict)
    measurement: Mapping[str, Any] | None = None
    """How these figures came about."""
    trouble: SourceError | None = None
    heartbeat_s: float | None = None
    """How often the profile is written at least; None for one that is written once."""
    shares: Mapping[str, int] = field(default_factory=dict)
    """To how many pods each device is lent at once."""
    not_offered: Mapping[str, GpuFault] = field(default_factory=dict)
    """Devices that the kubelet gives to no pod."""
    outside_bytes: Mapping[str, int] = field(default_factory=dict)
    """Memory in use that no pod explains."""
    remarks: Sequence[str] = ()
    """Sentences for the condition."""
    network: Sequence[Mapping[str, Any]] = ()
    """What was measured between this node and others."""


def compose(seen: Seen, before: Status, now: str, *, observed_at: str = "") -> dict[str, Any]:
    """The status to write. `before`: the last status, which provides the facts of a lost GPU and the `since` of states.

    `observed_at` is when the sample was taken; empty: the sample is that of `before`.
    """
    sample, known = seen.sample, _by_uuid(before)
    present = [remembered(entry, known.get(entry["uuid"], {}), now) for entry in sample.devices]
    faulty = {**seen.not_offered, **faults(present, now)}
    there = [*present, *lost(sample, before)]
    devices = [
        _device(entry, seen, known.get(entry["uuid"], {}), faulty.get(entry["uuid"]), now)
        for entry in sorted(there[:MOST_DEVICES], key=_order)
    ]
    document = {
        "observedAt": observed_at or before.get("observedAt"),
        "heartbeatSeconds": None if seen.heartbeat_s is None else math.ceil(seen.heartbeat_s),
        "source": sample.source,
        "driverVersion": sample.driver_version or None,
        "cudaVersion": sample.cuda_version or None,
        "profilerVersion": __version__,
        "summary": _summary(devices),
        "devices": devices,
        "links": [{**link, **seen.measured_links.get((link["a"], link["b"]), {})} for link in sample.links],
        "measurement": seen.measurement,
        "network": list(seen.network) or None,
        "conditions": [_ready(seen, len(present), before, now)],
    }
    # The API's own types drop what the API server would refuse.
    return parse(GPUNodeProfileStatus, {key: value for key, value in document.items() if value is not None}).to_dict()


def facts(status: Status) -> dict[str, Any]:
    """What readers act on: the status without its time stamp and without what changes constantly."""
    devices = [_lasting(device) for device in status.get("devices") or ()]
    return {**{k: v for k, v in status.items() if k != "observedAt"}, "devices": devices}


def _lasting(device: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in device.items() if name not in ("memoryFreeBytes", "clocksSlowedBy")}
    if "pcie" in kept:
        kept["pcie"] = {name: value for name, value in kept["pcie"].items() if name != "generation"}
    return kept


def sample_of(status: Status) -> Sample | None:
    """The sample that a status was made of, as far as it tells; None where it tells of no device."""
    if not status.get("devices"):
        return None
    return Sample(
        source=status["source"],
        devices=tuple({k: v for k, v in one.items() if k != "allocatedTo"} for one in status["devices"]),
        links=tuple(status.get("links") or ()),
        driver_version=status.get("driverVersion", ""),
        cuda_version=status.get("cudaVersion", ""),
    )


def pod_uids_of(status: Status) -> dict[str, str]:
    """Who has what, by a status."""
    return {
        device["uuid"]: device["allocatedTo"]["podUID"]
        for device in status.get("devices") or ()
        if device.get("allocatedTo")
    }


def changes(before: Status, after: Status) -> Iterator[str]:
    """What happened from one status to the next, in the words of a log line."""
    old, new = _by_uuid(before), _by_uuid(after)
    if old.keys() != new.keys():
        yield f"{len(new)} devices ({after['source']})"
    for uuid, device in new.items():
        was = old.get(uuid, {})
        holder, held_by = device.get("allocatedTo"), was.get("allocatedTo")
        if holder != held_by:
            yield f"{uuid} allocated to pod {holder['podUID']}" if holder else f"{uuid} free"
        state = device["health"]
        if state["state"] != (was.get("health") or {"state": "Healthy"})["state"]:
            yield f"{uuid} {state['state']} {state.get('reason', '')}".rstrip()
        if device.get("measured") != was.get("measured"):
            yield f"{uuid} measured" if device.get("measured") else f"{uuid} to be measured again"
    ready, was_ready = _condition(after), _condition(before)
    if was_ready and ready.get("reason") != was_ready.get("reason"):
        yield f"{READY}={ready['status']} ({ready['reason']})"


def device_states(status: Status) -> dict[str, int]:
    """How many devices are free, allocated to a pod, or unhealthy."""
    counts = dict.fromkeys(("free", "allocated", "unhealthy"), 0)
    for device in status.get("devices") or ():
        healthy = (device.get("health") or {}).get("state", "Healthy") == "Healthy"
        counts["unhealthy" if not healthy else "allocated" if "allocatedTo" in device else "free"] += 1
    return counts


def lost(sample: Sample, before: Status) -> Iterator[dict[str, Any]]:
    """The devices of `before` that are in the node and cannot be used, with the facts that they had.

    A pod keeps one that is lost until it ends.
    """
    seen = {entry["uuid"] for entry in sample.devices}
    bus_ids = {entry.get("pciBusId") for entry in sample.devices}
    for device in before.get("devices") or ():
        if device["uuid"] in seen:
            continue
        failure = sample.failed.get(device.get("index", 0))
        if failure is None and _is_missing(device, sample, bus_ids) and before.get("source") == sample.source:
            failure = _missing(device.get("index", 0))
        if failure is not None:
            health = {"state": "Quarantined", "reason": failure.reason, "message": failure.message}
            yield {key: value for key, value in {**device, "health": health}.items() if key != "allocatedTo"}


def _is_missing(device: Mapping[str, Any], sample: Sample, bus_ids: Set[Any]) -> bool:
    """Whether it is a whole GPU whose place on the bus is empty: it was neither replaced nor cut into slices."""
    place = device.get("pciBusId")
    return bool(place and place not in bus_ids and not device.get("mig") and device["uuid"] not in sample.aliases)


def _missing(index: int) -> DeviceFailure:
    return DeviceFailure(
        "GPUMissing",
        f"GPU {index} is no longer listed by the driver: see whether it is on the bus (lspci) and drain the node; "
        f"{ON_PURPOSE}",
    )


def _summary(devices: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    counts = Counter(one.get("product", "") for one in devices)
    return {
        "gpus": str(len(devices)),
        "free": str(sum(one["health"]["state"] == "Healthy" and "allocatedTo" not in one for one in devices)),
        "products": ", ".join(f"{count} x {name}" for name, count in counts.items())[:_TEXT_LENGTH],
    }


def _device(
    entry: Mapping[str, Any], seen: Seen, was: Mapping[str, Any], fault: GpuFault | None, now: str
) -> dict[str, Any]:
    uuid = entry["uuid"]
    device = {**entry, "health": _health(entry, was, fault, now)}
    if uuid in seen.resource_names:
        device["resourceName"] = seen.resource_names[uuid]
    if seen.shares.get(uuid, 1) > 1:
        device["shares"] = seen.shares[uuid]
    if uuid in seen.outside_bytes:
        device["memoryHeldBytes"] = seen.outside_bytes[uuid]
    if uuid in seen.measured:
        device["measured"] = seen.measured[uuid]
    if uuid in seen.pod_uids:
        device["allocatedTo"] = {"podUID": seen.pod_uids[uuid]}
    return device


def _health(entry: Mapping[str, Any], was: Mapping[str, Any], fault: GpuFault | None, now: str) -> dict[str, Any]:
    """`fault`: what was found now. What a description, or the loss of a GPU, says comes first."""
    health = {"state": HEALTHY, **(entry.get("health") or {})}
    if fault is not None and health["state"] == HEALTHY:
        health = {"state": "Quarantined", "reason": fault.reason, "message": fault.message}
    last = was.get("health") or {}
    same = last.get("state") == health["state"] and last.get("since")
    return {"since": last["since"] if same else now, **health}


def _ready(seen: Seen, devices: int, before: Status, now: str) -> dict[str, Any]:
    state, reason, message = "True", "Observed", f"{len(seen.sample.devices)} devices observed"
    if seen.trouble is not None:
        state, reason, message = "False", seen.trouble.reason, f"{seen.trouble} (the devices are those seen last)"
    elif seen.sample.failed:
        first = next(iter(seen.sample.failed.values()))
        message = f"{message}, {len(seen.sample.failed)} failed: {first.message}"
    if seen.trouble is None:
        message = "; ".join([message, *_left_out(devices), *seen.remarks])
    last = _condition(before)
    since = last["lastTransitionTime"] if last.get("status") == state else now
    return {"type": READY, "status": state, "reason": reason, "message": message[:1024], "lastTransitionTime": since}


def _left_out(devices: int) -> Iterator[str]:
    if devices > MOST_DEVICES:
        yield (
            f"a profile lists {MOST_DEVICES} devices, so no plan uses the other {devices - MOST_DEVICES}: cut the GPUs "
            "into fewer slices"
        )


def _condition(status: Status) -> Mapping[str, Any]:
    return next((one for one in status.get("conditions") or () if one["type"] == READY), {})


def _by_uuid(status: Status) -> dict[str, Mapping[str, Any]]:
    return {device["uuid"]: device for device in status.get("devices") or ()}


def _order(entry: Mapping[str, Any]) -> tuple[int, str]:
    return entry.get("index", 0), entry["uuid"]
