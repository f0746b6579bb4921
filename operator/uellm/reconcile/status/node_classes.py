"""`GPUNodeClass.status`, and classes to remember from nodes that were seen. Pure; the time is an argument."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uellm.api.node_class_facts import class_document, class_name, device_summary
from uellm.hardware import Node
from uellm.reconcile.conditions import Condition, condition_entries
from uellm.reconcile.node_class import NodeClass, node_class
from uellm.reconcile.planning.node_classes import Seen, has_its_labels, has_less, less_than_its_class, smaller_node
from uellm.reconcile.profiled_node import ProfiledNode

MOST_REMEMBERED = 64
_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
_DIGITS = 6
_LONGEST_NAME = 56


def class_status(
    given: NodeClass, nodes: Iterable[Seen], before: Mapping[str, Any], *, generation: int, now: str
) -> dict[str, Any]:
    """The status of a class. `nodes`: the profiled nodes with their Node objects; `before`: the last status."""
    present = list(nodes)
    doubt = given.invalid or less_than_its_class(given, present)
    if given.invalid:
        ready = Condition("Ready", "False", "InvalidClass", given.invalid)
    elif doubt:
        ready = Condition("Ready", "False", "NodeSmaller", f"no plan uses it: {doubt}")
    else:
        members = [profiled for profiled, node in present if has_its_labels(given, profiled, node)]
        words = ("services that fit on no node may be planned for it", smaller_node(given, members))
        ready = Condition("Ready", "True", "Usable", "; ".join(filter(None, words)))
    count = sum(given.is_class_of(_labels(node)) for _, node in present)
    entries = condition_entries([ready], before.get("conditions") or (), generation=generation, now=now)
    return {"nodes": count, "summary": device_summary(given.node.devices), "conditions": entries}


def to_remember(nodes: Iterable[Seen], classes: Sequence[NodeClass]) -> list[dict[str, Any]]:
    """The classes of nodes for which there is none, as documents; at most as many as there is room for.

    A node that has less than others of its class is no class: the next one of its labels will be like those.
    """
    present = list(nodes)
    known = list(classes)
    kinds = {_kind(each.node) for each in known}
    found: list[dict[str, Any]] = []
    for profiled, node in sorted(present, key=lambda each: _size(each[0]), reverse=True):
        kind = _kind(profiled.facts)
        # No plan uses shared GPUs, so none would join for them.
        shared = any(device.shares > 1 for device in profiled.facts.devices)
        if not profiled.facts.devices or shared or kind in kinds or _is_sick((profiled, node), known, present):
            continue
        labels = {key: value for key, value in _labels(node).items() if key == _INSTANCE_TYPE}
        name = f"{class_name(profiled.facts)[:_LONGEST_NAME].strip('-')}-{_digest(kind)}"
        found.append(class_document(profiled.facts, name, labels))
        kinds.add(kind)
        known.append(node_class(found[-1]))
    return found[: max(0, MOST_REMEMBERED - len(classes))]


def _is_sick(seen: Seen, classes: Iterable[NodeClass], nodes: Sequence[Seen]) -> bool:
    """Whether a node is of a class of its own product that says more, rightly."""
    profiled, node = seen
    return any(
        has_its_labels(each, profiled, node)
        and _are_parts(profiled.facts, each.node)
        and has_less(profiled, each)
        and not less_than_its_class(each, nodes)
        for each in classes
    )


def _are_parts(node: Node, whole: Node) -> bool:
    """Whether the GPUs are of the other node's products, or slices of them."""
    products = tuple(device.product for device in whole.devices)
    return all(device.product.startswith(products) for device in node.devices)


def _size(profiled: ProfiledNode) -> tuple[int, int]:
    devices = profiled.facts.devices
    return sum(device.as_built.memory_bytes for device in devices), len(devices)


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
