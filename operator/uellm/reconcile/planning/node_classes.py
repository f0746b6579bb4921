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
    """Most nodes that carry the labels of the class have less than it says: one of them, as a sentence. Else empty.

    A single node may be sick, or cut into slices. Where most have less, the next one will, too.
    """
    members = [profiled for profiled, node in nodes if has_its_labels(each, profiled, node)]
    smaller = [profiled for profiled in members if has_less(profiled, each)]
    return smaller_node(each, smaller) if 2 * len(smaller) > len(members) else ""


def smaller_node(each: NodeClass, nodes: Iterable[ProfiledNode]) -> str:
    """The first of the nodes that has less than the class says, as a sentence; empty for none."""
    for profiled in nodes:
        if has_less(profiled, each):
            has, should = _listed(_as_built(profiled)), _listed(each.node.devices)
            return f"node {profiled.facts.name} carries its labels and has {has} instead of {should}"
    return ""


def has_its_labels(each: NodeClass, profiled: ProfiledNode, node: Mapping[str, Any] | None) -> bool:
    """Whether a node is of the class, as far as its labels tell."""
    labels = (node or {}).get("metadata", {}).get("labels") or {}
    return profiled.facts.simulated == each.node.simulated and each.is_class_of(labels)


def has_less(profiled: ProfiledNode, each: NodeClass) -> bool:
    """Whether a node has fewer GPUs, or smaller ones, than the class says."""
    return _is_less(_as_built(profiled), each.node.devices)


def _as_built(profiled: ProfiledNode) -> list[Device]:
    return [device.as_built for device in profiled.facts.devices]


def _is_less(has: Sequence[Device], should: Sequence[Device]) -> bool:
    own, expected = (sorted((device.memory_bytes for device in each), reverse=True) for each in (has, should))
    return len(own) < len(expected) or any(
        memory_bytes < wanted * (1 - SAME_CLASS) for memory_bytes, wanted in zip(own, expected, strict=False)
    )


def _listed(devices: Sequence[Device]) -> str:
    counts = Counter((device.product or "GPU", device.memory_bytes) for device in devices)
    kinds = (f"{count} x {product} ({size(memory_bytes)})" for (product, memory_bytes), count in counts.items())
    return ", ".join(kinds) or "no GPU"
