"""What a plan depends on of the hardware, as plain facts: for the profile's hash and for plan.json.

Time stamps, free memory and who holds a device are left out: they change all the time and change no plan's content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from uellm.hardware import Device, Node


def device_facts(device: Device) -> dict[str, Any]:
    """A GPUNodeProfile's device entry without what passes."""
    return replace(device, memory_free_bytes=None, measured_at="", allocated_to_pod_uid="").to_dict()


def link_facts(node: Node) -> list[dict[str, Any]]:
    """A node's links, ordered by their ends."""
    return [link.to_dict() for link in sorted(node.links, key=lambda link: (link.a, link.b))]


def profile_hash(nodes: Iterable[Node]) -> str:
    """Digest of the facts of these nodes, whatever their order."""
    facts = [
        {
            "node": node.name,
            "source": node.source,
            "devices": [
                {**device_facts(device), "excluded": device.excluded_reason}
                for device in sorted(node.devices, key=lambda device: device.uuid)
            ],
            "links": link_facts(node),
        }
        for node in sorted(nodes, key=lambda node: node.name)
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
