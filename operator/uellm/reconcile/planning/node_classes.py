"""Which classes of nodes may join for a service, and which nodes that joined are less than their class says. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from uellm.api import LLMService
from uellm.hardware import Device
from uellm.planner.constants import SAME_CLASS
from uellm.planner.request import LeftOut, NodeOffer
from uellm.planner.units import size
from uellm.reconcile.node_class import NodeClass
from uellm.reconcile.planning.eligible_nodes import excluded, tainted
from uellm.reconcile.profiled_node import ProfiledNode

Seen = tuple[ProfiledNode, Mapping[str, Any] | None]
"""A profiled node with its Node object."""


def with_nodes(nodes: Iterable[ProfiledNode], node_named: Callable[[str], Mapping[str, Any] | None]) -> list[Seen]:
    """Profiled nodes with their Node objects."""
    return [(each, node_named(each.facts.name)) for each in nodes]


def doubts(classes: Sequence[NodeClass], nodes: Sequence[Seen]) -> dict[str, str]:
    """Why no plan may use a class, by the class's name: it cannot be read, or a node is less than it says."""
    found = ((each.name, each.invalid or less_than_its_class(each, nodes)) for each in classes)
    return {name: reason for name, reason in found if reason}


def would_join(
    classes: Sequence[NodeClass], doubted: Mapping[str, str], service: LLMService
) -> tuple[tuple[NodeOffer, ...], tuple[LeftOut, ...]]:
    """A node of each class that the service's pods may run on, and the other classes."""
    template = service.spec.template.to_dict()
    kept, reasons = list[NodeOffer](), list[LeftOut]()
    for each in classes:
        reason = doubted.get(each.name) or _unreachable(each, template)
        if reason:
            reasons.append(LeftOut(each.node.name, reason))
        else:
            kept.append(each.offer)
    return tuple(kept), tuple(reasons)


def _unreachable(each: NodeClass, template: Mapping[str, Any]) -> str:
    node = {"metadata": {"labels": each.labels}}
    return excluded(node, each.node, template) or tainted(each.taints, each.node, template)


def less_than_its_class(each: NodeClass, nodes: Iterable[Seen]) -> str:
    """A node that carries the labels of the class and has less than it says, as a sentence; empty for none."""
    for profiled, node in nodes:
        labels = (node or {}).get("metadata", {}).get("labels") or {}
        if profiled.facts.simulated == each.node.simulated and each.is_class_of(labels):
            has, should = [device.as_built for device in profiled.facts.devices], each.node.devices
            if _is_less(has, should):
                return (
                    f"node {profiled.facts.name} carries its labels and has {_listed(has)} instead of {_listed(should)}"
                )
    return ""


def _is_less(has: Sequence[Device], should: Sequence[Device]) -> bool:
    own, expected = (sorted((device.memory_bytes for device in each), reverse=True) for each in (has, should))
    return len(own) < len(expected) or any(
        memory_bytes < wanted * (1 - SAME_CLASS) for memory_bytes, wanted in zip(own, expected, strict=False)
    )


def _listed(devices: Sequence[Device]) -> str:
    counts = Counter((device.product or "GPU", device.memory_bytes) for device in devices)
    kinds = (f"{count} x {product} ({size(memory_bytes)})" for (product, memory_bytes), count in counts.items())
    return ", ".join(kinds) or "no GPU"
