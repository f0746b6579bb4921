"""A profiled node, split into what a plan depends on and what changes by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from uellm.hardware import Node


class Machine(NamedTuple):
    """A node's GPUs. Two profiles with the same machine ask for no new plan."""

    facts: Node  # without free memory, time stamps and allocations
    holders: Mapping[str, str]  # device uuid -> uid of the pod that has it

    @property
    def usable(self) -> tuple[str, ...]:
        """Devices that are healthy and not excluded, whoever has them."""
        return tuple(device.uuid for device in self.facts.devices if device.usable)

    def free_for(self, pods: set[str]) -> tuple[str, ...]:
        """Usable devices that nobody has, or one of these pods."""
        return tuple(uuid for uuid in self.usable if self.holders.get(uuid) in (None, *pods))

    def held_by(self, pod: str) -> tuple[str, ...]:
        """Devices of a pod, in the order of their index."""
        return tuple(uuid for uuid, holder in self.holders.items() if holder == pod)


def machine(profile: Mapping[str, Any]) -> Machine:
    """Read a GPUNodeProfile."""
    node = Node.from_profile(profile)
    plain = tuple(
        dataclasses.replace(device, memory_free_bytes=None, measured_at="", allocated_to_pod_uid="")
        for device in node.devices
    )
    holders = {device.uuid: device.allocated_to_pod_uid for device in node.devices if device.allocated_to_pod_uid}
    return Machine(dataclasses.replace(node, devices=plain), holders)
