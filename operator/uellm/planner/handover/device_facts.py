"""Facts of single GPUs: devices.json, and what a simulated node's device plugin hands to a container.

devices.json is advice. The controller keeps it current for nodes that can hold the plan; a launcher starts without it,
with what the driver reports and the facts of the GPU's class in plan.json.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from uellm.documents import VERSION, parsed, reading
from uellm.hardware import Device, Link, Node
from uellm.planner.constants import MOST_NODES
from uellm.pod_interface import DEVICES_FILE


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What is known of single devices."""

    devices: Mapping[str, Device] = field(default_factory=dict)
    """By uuid."""
    links: tuple[Link, ...] = ()
    planned: tuple[str, ...] = ()
    """Uuids meant for the first replica, in rank order."""

    def to_json(self) -> str:
        """Without indentation."""
        document = {
            "version": VERSION,
            "devices": [_entry(device) for device in self.devices.values()],
            "links": [link.to_dict() for link in self.links],
            "planned": list(self.planned),
        }
        return _compact(document)

    @classmethod
    def from_json(cls, text: str | bytes, name: str = DEVICES_FILE) -> DeviceFacts:
        """The inverse of `to_json`. Raises UnreadableDocument, which begins with `name`."""
        with reading(name, parsed(name, text)) as data:
            devices = [Device.from_dict(entry) for entry in data["devices"]]
            return cls(
                {device.uuid: device for device in devices},
                tuple(map(Link.from_dict, data.get("links") or ())),
                tuple(map(str, data.get("planned") or ())),
            )


NO_FACTS = DeviceFacts()


def facts_of(nodes: Iterable[Node], planned: Sequence[str] = ()) -> DeviceFacts:
    """The facts of these nodes' devices, ordered by node and uuid."""
    ordered = sorted(nodes, key=lambda node: node.name)
    devices = [_lasting(device) for node in ordered for device in sorted(node.devices, key=lambda each: each.uuid)]
    links = [link for node in ordered for link in sorted(node.links, key=lambda link: (link.a, link.b))]
    return DeviceFacts({device.uuid: device for device in devices}, tuple(links), tuple(planned))


@dataclass(frozen=True, slots=True)
class NodeJson:
    """A node's part of devices.json as text, made once and shared by the services that may run there."""

    devices: str
    links: str

    @classmethod
    def of(cls, node: Node) -> NodeJson:
        """Of one node."""
        facts = facts_of((node,))
        entries = ([_entry(device) for device in facts.devices.values()], [link.to_dict() for link in facts.links])
        return cls(*(_compact(part)[1:-1] for part in entries))


def joined(nodes: Mapping[str, NodeJson], planned: Sequence[str]) -> str:
    """devices.json of these nodes: what `facts_of(nodes, planned).to_json()` gives, without building it anew."""
    ordered = [nodes[name] for name in sorted(nodes)]
    devices = ",".join(node.devices for node in ordered if node.devices)
    links = ",".join(node.links for node in ordered if node.links)
    return f'{{"version":{VERSION},"devices":[{devices}],"links":[{links}],"planned":{_compact(list(planned))}}}'


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def facts_among(uuids: Sequence[str], known: Mapping[str, Device], links: Iterable[Link]) -> DeviceFacts:
    """The facts of a container's own devices."""
    own = {uuid: _lasting(known[uuid]) for uuid in uuids if uuid in known}
    return DeviceFacts(own, tuple(link for link in links if link.a in own and link.b in own))


def _lasting(device: Device) -> Device:
    return replace(device, memory_free_bytes=None, measured_at="", allocated_to_pod_uid="")


def _entry(device: Device) -> dict[str, Any]:
    """Without what the placement of layers does not ask for."""
    unused = ("health", "numaNode", "pciBusId", "powerLimitWatts")
    return {name: value for name, value in device.to_dict().items() if name not in unused}


def nodes_for_facts(names: Sequence[str], nodes: Mapping[str, Node]) -> list[Node]:
    """The first nodes of these, as many as devices.json has room for."""
    return [nodes[name] for name in names_for_facts(names, nodes)]


def names_for_facts(names: Sequence[str], known: Container[str]) -> list[str]:
    """The names of these nodes."""
    return [name for name in dict.fromkeys(names) if name in known][:MOST_NODES]
