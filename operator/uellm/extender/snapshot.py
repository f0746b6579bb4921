"""What every node offers, from the events of two watches. Pure: events in, offers out.

Of the devices of a node

    free      are healthy, not excluded, and held by no pod (the profile names none, or one that has gone),
    promised  is the number of GPUs of pods bound to the node that its profile does not show yet. The kubelet picks
              which ones, so only their number is known.

A pod leaves the API server after its containers have ended, and the profile follows seconds later. The scheduler tries
the pod's successor at once, and again only after some other event. So the devices of a pod that has gone count as free
without waiting for the profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from uellm.documents import UnreadableDocument
from uellm.extender.plans import read_plan
from uellm.extender.protocol import group_of, plan_of
from uellm.hardware import Device, Node

FINISHED = ("Succeeded", "Failed")


class NodeSpeed(NamedTuple):
    """How fast a node's free devices are, by the slowest of them; 0 where that is not measured."""

    memory_bytes_per_s: float = 0.0
    link_bytes_per_s: float = 0.0


class NodeStanding(NamedTuple):
    """What a node's rank depends on."""

    speed: NodeSpeed
    unpromised: int
    """Free devices that are not promised."""


class ResourceOffer(NamedTuple):
    """What a node offers of one extended resource. `shape` says what the free devices are, whichever they are."""

    node: Node
    free: tuple[str, ...]
    promised: int
    shape: str
    unusable: int = 0
    """Devices of the resource that are quarantined or excluded."""
    standing: NodeStanding = NodeStanding(NodeSpeed(), 0)


class PodWithPlan(NamedTuple):
    """A pod with a plan that has a node."""

    node: str
    resource_name: str
    gpus: int
    group: str = ""
    """The replica that it forms with others."""


@dataclass(slots=True)
class _Entry:
    node: Node
    offers: dict[str, ResourceOffer] = field(default_factory=dict)
    """By resource, worked out when asked for."""


class Snapshot:
    """The nodes' profiles and the bound pods with plans."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._holdings: dict[str, dict[str, PodWithPlan]] = {}
        """Bound pods, by node and uid."""
        self._node_of: dict[str, str] = {}
        """The node of each bound pod, by uid."""
        self._groups: dict[str, dict[str, str]] = {}
        """The nodes of the bound pods of each group, by uid."""
        self._ended_groups: set[str] = set()
        self._gone: dict[str, str] = {}
        """The node of pods that are gone, by uid, while a profile may still name them."""

    def put_profile(self, profile: Mapping[str, Any]) -> None:
        """A profile is new or has changed. One whose devices cannot be read counts as absent."""
        name = profile["metadata"]["name"]
        try:
            node = Node.from_profile(profile)
        except (KeyError, TypeError, ValueError):
            self.drop_profile(name)
            return
        reported = {device.allocated_to_pod_uid for device in node.devices}
        self._gone = {uid: where for uid, where in self._gone.items() if where != name or uid in reported}
        self._entries[name] = _Entry(node)

    def drop_profile(self, name: str) -> None:
        """A node has no profile any more."""
        self._entries.pop(name, None)
        self._gone = {uid: where for uid, where in self._gone.items() if where != name}

    def put_pod(self, pod: Mapping[str, Any]) -> None:
        """A pod is new or has changed."""
        uid = pod["metadata"]["uid"]
        holding = _holding(pod)
        if holding is None or (pod.get("status") or {}).get("phase") in FINISHED:
            self.drop_pod(uid)
        elif self._holdings.get(holding.node, {}).get(uid) != holding:  # most events are of a pod's status
            self._node_of[uid] = holding.node
            if holding.group:
                self._groups.setdefault(holding.group, {})[uid] = holding.node
            self._holdings.setdefault(holding.node, {})[uid] = holding
            self._forget_offers(holding.node)

    def drop_pod(self, uid: str) -> None:
        """A pod has gone, or has ended: either way its devices are free."""
        node = self._node_of.pop(uid, None)
        if node is not None:
            group = self._holdings[node].pop(uid).group
            if group:
                del self._groups[group][uid]
                if not self._groups[group]:
                    del self._groups[group]
                    self._ended_groups.add(group)
            self._gone[uid] = node
            self._forget_offers(node)

    def nodes_of_group(self, group: str) -> list[str]:
        """The node of each of its pods that has one."""
        return sorted(self._groups.get(group, {}).values())

    def take_ended_groups(self) -> set[str]:
        """Groups whose last bound pod has gone since the last call."""
        taken, self._ended_groups = self._ended_groups, set()
        return taken

    def offer(self, name: str, resource_name: str) -> ResourceOffer | None:
        """What a node offers, or None for a node that has no profile."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        offer = entry.offers.get(resource_name)
        if offer is None:
            offer = entry.offers[resource_name] = self._offer(entry.node, resource_name)
        return offer

    def _offer(self, node: Node, resource_name: str) -> ResourceOffer:
        reported = {device.allocated_to_pod_uid for device in node.devices}
        free = [
            device
            for device in node.devices
            if device.usable
            and device.resource_name == resource_name
            and (not device.allocated_to_pod_uid or device.allocated_to_pod_uid in self._gone)
        ]
        promised = sum(
            holding.gpus
            for uid, holding in self._holdings.get(node.name, {}).items()
            if holding.resource_name == resource_name and uid not in reported
        )
        unusable = sum(not device.usable and device.resource_name == resource_name for device in node.devices)
        uuids = tuple(device.uuid for device in free)
        standing = NodeStanding(_speed(node, free), len(free) - promised)
        return ResourceOffer(node, uuids, promised, _shape(free), unusable, standing)

    def _forget_offers(self, name: str) -> None:
        entry = self._entries.get(name)
        if entry is not None:
            entry.offers.clear()


def _holding(pod: Mapping[str, Any]) -> PodWithPlan | None:
    node = (pod.get("spec") or {}).get("nodeName")
    text = plan_of(pod)
    if not node or text is None:
        return None
    try:
        plan = read_plan(text)
    except UnreadableDocument:
        return None  # somebody else put it there; the profile will show what it holds
    return PodWithPlan(node, plan.resource_name, plan.gpus, group_of(pod))


def _speed(node: Node, free: list[Device]) -> NodeSpeed:
    own = {device.uuid for device in free}
    links = [link.bytes_per_s or 0.0 for link in node.links if link.a in own and link.b in own]
    return NodeSpeed(min((device.memory_bytes_per_s or 0.0 for device in free), default=0.0), min(links, default=0.0))


def _shape(devices: list[Device]) -> str:
    kinds = ((device.product, device.memory_bytes, device.compute_capability, device.mig) for device in devices)
    return repr(sorted(kinds))
