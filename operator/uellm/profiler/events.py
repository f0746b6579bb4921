"""Events on the Node for GPUs that were quarantined or are healthy again. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from uellm.hardware.types import HEALTHY
from uellm.kube import EVENT

NAMESPACE = "default"
"""Where Kubernetes keeps the events of objects without a namespace."""
_NOTE_BYTES = 1024


class Turn(NamedTuple):
    """A GPU's health has changed."""

    reason: str
    """The fault, or GPUHealthy."""
    note: str


def turns(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Turn]:
    """What changed from one status to the next: a fault that came or became another, and a recovery."""
    known = {device["uuid"]: _fault(device) for device in before.get("devices") or ()}
    for device in after.get("devices") or ():
        was, now = known.get(device["uuid"], ""), _fault(device)
        if now and now != was:
            yield Turn(now, (device["health"].get("message") or now))
        elif was and not now:
            yield Turn("GPUHealthy", f"GPU {device['index']} ({device['uuid']}) may be used again: {was} is over")


def event(turn: Turn, node: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The Event about a Node object."""
    name = node["metadata"]["name"]
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"generateName": f"{name}-", "namespace": NAMESPACE},
        "eventTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Normal" if turn.reason == "GPUHealthy" else "Warning",
        "reason": turn.reason,
        "action": "Restore" if turn.reason == "GPUHealthy" else "Quarantine",
        "note": turn.note.encode()[:_NOTE_BYTES].decode("utf-8", "ignore"),
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]},
        "reportingController": "uellm.io/profiler",
        "reportingInstance": name,
    }


def _fault(device: Mapping[str, Any]) -> str:
    health = device.get("health") or {}
    return "" if health.get("state", HEALTHY) == HEALTHY else health.get("reason") or "Quarantined"
