"""The Event on a Node that says why its GPUs are not measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from uellm.api.names import GROUP

REASON = "GPUsNotMeasured"
NAMESPACE = "default"
"""Where Kubernetes keeps the events of objects without a namespace."""
_NOTE_BYTES = 1024


def not_measured_event(node: Mapping[str, Any], note: str, now: datetime, instance: str) -> dict[str, Any]:
    """The Event. `instance`: the operator's identity."""
    name = node["metadata"]["name"]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": f"{name}-", "namespace": NAMESPACE},
        "eventTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning",
        "reason": REASON,
        "action": "Measure",
        "note": note.encode()[:_NOTE_BYTES].decode("utf-8", "ignore"),
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]},
        "reportingController": f"{GROUP}/controller",
        "reportingInstance": instance,
    }
