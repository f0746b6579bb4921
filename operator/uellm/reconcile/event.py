"""The Events that tell what changed about a service. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from uellm.api.names import GROUP
from uellm.kube import LLMSERVICE
from uellm.reconcile.conditions import Condition
from uellm.reconcile.drift import digest
from uellm.reconcile.observe import Observed

_NOTE_BYTES = 1024
# Normal steps, not failures.
_EXPECTED = frozenset({"EngineStarting", "Inspecting", "ModelDownloading", "RollingOut"})


def event_of(observed: Observed, note: Condition, now: datetime, instance: str) -> dict[str, Any]:
    """The Event for a note. `instance`: the operator's process that reports it."""
    metadata = observed.document["metadata"]
    moment = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    identity = digest([metadata["uid"], *note, moment])
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{identity}", "namespace": metadata["namespace"]},
        "eventTime": moment,
        "type": "Warning" if note.status == "False" and note.reason not in _EXPECTED else "Normal",
        "reason": note.reason,
        "action": "Reconcile",
        "note": (note.message or note.reason).encode()[:_NOTE_BYTES].decode(errors="ignore"),
        "reportingController": f"{GROUP}/controller",
        "reportingInstance": instance,
        "regarding": {
            "apiVersion": LLMSERVICE.api_version,
            "kind": LLMSERVICE.kind,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
    }
