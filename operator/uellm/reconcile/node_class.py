"""A class of nodes that may join, as its GPUNodeClass describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from uellm.api import parse_node_class, quantity
from uellm.api.node_class_facts import class_node
from uellm.api.node_labels import describes_gpus
from uellm.errors import BadInput
from uellm.hardware import Node, class_place
from uellm.planner.request import NodeOffer


@dataclass(frozen=True)
class NodeClass:
    """What a node of the class is."""

    name: str
    node: Node
    """A node of the class, with made-up uuids; without devices where the class cannot be read."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, Any], ...] = ()
    host_memory_bytes: int | None = None
    host_millicores: int | None = None
    invalid: str = ""
    """Why this version of the operator cannot read it."""

    @cached_property
    def offer(self) -> NodeOffer:
        """A node of the class, as it would be offered to every service."""
        return NodeOffer(
            self.node,
            tuple(device.uuid for device in self.node.devices),
            node_class=self.name,
            host_memory_bytes=self.host_memory_bytes,
            host_millicores=self.host_millicores,
        )

    def is_class_of(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels is of this class.

        Labels about GPUs are what a node promises, not what it is. They decide only where the class has no others.
        """
        lasting = {key: value for key, value in self.labels.items() if not describes_gpus(key)} or self.labels
        return bool(lasting) and lasting.items() <= labels.items()


def node_class(document: Mapping[str, Any]) -> NodeClass:
    """Read a GPUNodeClass."""
    name = str(document["metadata"]["name"])
    try:
        parsed = parse_node_class({key: value for key, value in document.items() if key != "status"})
    except BadInput as error:
        return NodeClass(name, Node(class_place(name), ()), invalid=str(error))
    spec, host = parsed.spec, parsed.spec.resources
    return NodeClass(
        name,
        class_node(parsed),
        spec.labels,
        tuple(taint.to_dict() for taint in spec.taints),
        None if host.memory is None else int(quantity(host.memory)),
        None if host.cpu is None else int(quantity(host.cpu) * 1000),
    )
