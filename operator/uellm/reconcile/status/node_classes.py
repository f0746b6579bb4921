"""`GPUNodeClass.status`, and classes to remember from nodes that were seen. Pure; the time is an argument."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uellm.api.node_class_facts import class_document, class_name, device_summary
from uellm.hardware import Node
from uellm.reconcile.conditions import Condition, condition_entries
from uellm.reconcile.node_class import NodeClass
from uellm.reconcile.planning.node_classes import Seen, less_than_its_class

MOST_REMEMBERED = 64
_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
_DIGITS = 6
_LONGEST_NAME = 56


def class_status(
    node_class: NodeClass, nodes: Iterable[Seen], before: Mapping[str, Any], *, generation: int, now: str
) -> dict[str, Any]:
    """The status of a class. `nodes`: the profiled nodes with their Node objects; `before`: the last status."""
    present = list(nodes)
    doubt = node_class.invalid or less_than_its_class(node_class, present)
    if node_class.invalid:
        ready = Condition("Ready", "False", "InvalidClass", node_class.invalid)
    elif doubt:
        ready = Condition("Ready", "False", "NodeSmaller", f"no plan uses it: {doubt}")
    else:
        ready = Condition("Ready", "True", "Usable", "services that fit on no node may be planned for it")
    count = sum(node_class.is_class_of(_labels(node)) for _, node in present)
    entries = condition_entries([ready], before.get("conditions") or (), generation=generation, now=now)
    return {"nodes": count, "summary": device_summary(node_class.node.devices), "conditions": entries}


def to_remember(nodes: Iterable[Seen], classes: Sequence[NodeClass]) -> list[dict[str, Any]]:
    """The classes of nodes for which there is none, as documents; at most as many as there is room for."""
    known = {_kind(each.node) for each in classes}
    found: dict[Any, dict[str, Any]] = {}
    for profiled, node in nodes:
        kind = _kind(profiled.facts)
        # No plan uses shared GPUs, so none would join for them.
        shared = any(device.shares > 1 for device in profiled.facts.devices)
        if not profiled.facts.devices or shared or kind in known or kind in found:
            continue
        labels = {key: value for key, value in _labels(node).items() if key == _INSTANCE_TYPE}
        name = f"{class_name(profiled.facts)[:_LONGEST_NAME].strip('-')}-{_digest(kind)}"
        found[kind] = class_document(profiled.facts, name, labels)
    return list(found.values())[: max(0, MOST_REMEMBERED - len(classes))]


def _kind(node: Node) -> Any:
    """What nodes of a class have in common: not how fast one of them was measured."""
    built = (device.as_built for device in node.devices)
    devices = sorted((each.product, each.memory_bytes, each.resource_name, each.mig) for each in built)
    return node.simulated, tuple(devices)


def _digest(kind: Any) -> str:
    return hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:_DIGITS]


def _labels(node: Mapping[str, Any] | None) -> Mapping[str, str]:
    labels: Mapping[str, str] = (node or {}).get("metadata", {}).get("labels") or {}
    return labels
