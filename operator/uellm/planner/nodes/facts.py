"""The hardware facts that a plan depends on, for the profile's hash and for plan.json.

Time stamps, free memory and the pod that holds a device are left out: they change all the time and affect no plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace

from uellm.hardware import Device, Link, Node
from uellm.planner.memo import KEPT_NODES, by_identity


def lasting(device: Device) -> Device:
    """The device without the facts that change all the time."""
    return replace(device, memory_free_bytes=None, measured_at="", allocated_to_pod_uid="")


def ordered_links(node: Node) -> tuple[Link, ...]:
    """A node's links, sorted by their end points."""
    return tuple(sorted(node.links, key=lambda link: (link.a, link.b)))


def profile_hash(nodes: Iterable[Node]) -> str:
    """A digest of these nodes' facts; it does not depend on their order. 16 hexadecimal digits of SHA-256."""
    facts = ",".join(map(_facts_json, sorted(nodes, key=lambda node: node.name)))
    return hashlib.sha256(f"[{facts}]".encode()).hexdigest()[:16]


@by_identity(KEPT_NODES)
def _facts_json(node: Node) -> str:
    facts = {
        "node": node.name,
        "source": node.source,
        "devices": [
            {**lasting(device).to_dict(), "excluded": device.excluded_reason}
            for device in sorted(node.devices, key=lambda device: device.uuid)
        ],
        "links": [link.to_dict() for link in ordered_links(node)],
        **({"network": [link.to_dict() for link in node.network]} if node.network else {}),
    }
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))
