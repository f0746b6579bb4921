"""A node as its GPUNodeProfile describes it, split into what a plan depends on and who holds the devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from uellm.hardware import Node, PublishedGpu
from uellm.planner.handover.device_facts import NodeJson


@dataclass(frozen=True)
class ProfiledNode:
    """A node's GPUs. Two profiles that give the same value call for no new plan."""

    facts: Node
    """Without free memory, time stamps and allocations."""
    holders: Mapping[str, str]
    """Device uuid -> uid of the pod that holds it."""

    @cached_property
    def usable(self) -> tuple[str, ...]:
        """Devices that are healthy and not excluded, whoever holds them."""
        return tuple(device.uuid for device in self.facts.devices if device.usable)

    @cached_property
    def kinds(self) -> tuple[tuple[int, str], ...]:
        """Memory in bytes and product of the usable devices that a device plugin may pick, the smallest first."""
        able = (device for device in self.facts.devices if device.usable and not device.claims_only)
        return tuple(sorted((device.memory_bytes, device.product) for device in able))

    def with_holders(self, holders: Mapping[str, str]) -> ProfiledNode:
        """The same node with other holders; what was worked out from its facts is kept."""
        other = ProfiledNode(self.facts, holders)
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name != "holders"})
        return other

    @cached_property
    def json(self) -> NodeJson:
        """Its part of devices.json."""
        return NodeJson.of(self.facts)

    def free_for(self, pods: set[str]) -> tuple[str, ...]:
        """Usable devices that are held by nobody, or by one of these pods."""
        if not self.holders:
            return self.usable
        return tuple(uuid for uuid in self.usable if self.holders.get(uuid) in (None, *pods))


def with_claims(
    node: ProfiledNode,
    published: Mapping[str, PublishedGpu],
    holders: Mapping[str, str],
    offered: Collection[str] = (),
) -> ProfiledNode:
    """The node with what its DRA driver publishes, by uuid, and with the GPUs that claims hold.

    `offered`: uuids of the GPUs that pods can ask for by an extended resource, too.
    """
    if not published and not holders:
        return node
    devices = tuple(
        dataclasses.replace(device, published=published[device.uuid], claims_only=device.uuid not in offered)
        if device.uuid in published
        else device
        for device in node.facts.devices
    )
    own = {device.uuid for device in devices}
    claimed = {uuid: holder for uuid, holder in holders.items() if uuid in own}
    return ProfiledNode(dataclasses.replace(node.facts, devices=devices), {**node.holders, **claimed})


def profiled_node(profile: Mapping[str, Any]) -> ProfiledNode:
    """Read a GPUNodeProfile."""
    node = Node.from_profile(profile)
    devices = tuple(
        dataclasses.replace(device, memory_free_bytes=None, measured_at="", allocated_to_pod_uid="")
        for device in node.devices
    )
    holders = {device.uuid: device.allocated_to_pod_uid for device in node.devices if device.allocated_to_pod_uid}
    return ProfiledNode(dataclasses.replace(node, devices=devices), holders)
