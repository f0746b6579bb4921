"""The ways to give GPUs to pods, each with the code that does it in a cluster.

device-plugin           The kubelet picks the GPUs, and the scheduler counts them. Nobody looks at which of them are
                        free when a pod is scheduled, so a plan has to hold on any of a node's GPUs, free or not.
device-plugin+extender  The kubelet picks the GPUs. The plan is made for those that are free now, and UELLM's extender
                        refuses and ranks nodes by them: the plan has to hold on any of the free ones.
dra                     A claim says what each GPU of a stage must be.

Where the extender ranks nothing, pods go to the node with the greatest share of free GPUs, as kube-scheduler spreads
them by itself. The kubelet's choice is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from uellm.evaluate.allocation.world import ClusterState, GivenDevices
from uellm.extender.decide import Judge, scores
from uellm.extender.snapshot import Snapshot
from uellm.hardware import DEVICE_PLUGIN, DRA, Node
from uellm.planner.assignment.every_subset import refusal
from uellm.planner.handover.annotation import PlanAnnotation, refusal_on
from uellm.planner.handover.claim import published
from uellm.planner.handover.publish import plan_annotation
from uellm.planner.nodes.pools import pools_of_offer
from uellm.planner.request import NodeOffer, PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.planning.ledger import commitment_to, reservation
from uellm.reconcile.profiled_node import ProfiledNode


class AllocationMode(Protocol):
    """A way to give GPUs to pods."""

    name: str
    allocation: str
    """As in spec.placement."""

    def nodes(self, nodes: dict[str, Node]) -> dict[str, Node]:
        """The nodes as this way offers them."""

    def offers(self, state: ClusterState) -> tuple[NodeOffer, ...]:
        """What a plan may count on."""

    def give(self, plan: Plan, request: PlanRequest, state: ClusterState, draw: random.Random) -> GivenDevices | None:
        """The node and the GPUs of the next pod of a plan; None where it finds no node."""


class _ByDevicePlugin:
    allocation = DEVICE_PLUGIN

    def nodes(self, nodes: dict[str, Node]) -> dict[str, Node]:
        return nodes

    def give(self, plan: Plan, request: PlanRequest, state: ClusterState, draw: random.Random) -> GivenDevices | None:
        annotation = plan_annotation(plan, request)
        able = self.able(annotation, state)
        if not able:
            return None
        name = self.ranked(annotation, able, state, draw)
        return GivenDevices(name, tuple(draw.sample(state.free(name), annotation.gpus)))

    def able(self, plan: PlanAnnotation, state: ClusterState) -> list[str]:
        raise NotImplementedError

    def ranked(self, plan: PlanAnnotation, names: list[str], state: ClusterState, draw: random.Random) -> str:
        raise NotImplementedError


class AnyScheduler(_ByDevicePlugin):
    """The device plugin alone."""

    name = "device-plugin"

    def offers(self, state: ClusterState) -> tuple[NodeOffer, ...]:
        """All GPUs, of which only the number that is taken is known."""
        return tuple(self._offer(name, state) for name in state.nodes)

    def able(self, plan: PlanAnnotation, state: ClusterState) -> list[str]:
        """The nodes that hold a pod on whatever GPUs it gets."""
        return [
            name
            for name in state.nodes
            if any(refusal(pool, plan.task, plan.pipeline) is None for pool in pools_of_offer(self._offer(name, state)))
        ]

    def ranked(self, plan: PlanAnnotation, names: list[str], state: ClusterState, draw: random.Random) -> str:
        """The emptiest node."""
        return emptiest(names, state, draw)

    def _offer(self, name: str, state: ClusterState) -> NodeOffer:
        node = state.nodes[name]
        everything = tuple(device.uuid for device in node.devices)
        return NodeOffer(node, everything, promised=len(everything) - len(state.free(name)))


class WithExtender(_ByDevicePlugin):
    """The device plugin, and UELLM's scheduler extender."""

    name = "device-plugin+extender"

    def __init__(self) -> None:
        self._judge = Judge(refusal_on)

    def offers(self, state: ClusterState) -> tuple[NodeOffer, ...]:
        """The GPUs that are free."""
        return _free(state)

    def able(self, plan: PlanAnnotation, state: ClusterState) -> list[str]:
        """The nodes that the extender's filter lets pass."""
        refused = self._judge.refusals(plan.to_json(), state.nodes, _snapshot(state))
        return [name for name in state.nodes if name not in refused]

    def ranked(self, plan: PlanAnnotation, names: list[str], state: ClusterState, draw: random.Random) -> str:
        """The node that the extender ranks highest."""
        points = scores(plan.to_json(), names, _snapshot(state))
        best = max(points.values())
        return emptiest([name for name in names if points[name] == best], state, draw)


class ByClaim:
    """Dynamic resource allocation, with the cluster's own scheduler."""

    name = "dra"
    allocation = DRA

    def nodes(self, nodes: dict[str, Node]) -> dict[str, Node]:
        """The nodes as their DRA driver publishes them."""
        return {name: _published(node) for name, node in nodes.items()}

    def offers(self, state: ClusterState) -> tuple[NodeOffer, ...]:
        """The GPUs that are free."""
        return _free(state)

    def give(self, plan: Plan, request: PlanRequest, state: ClusterState, draw: random.Random) -> GivenDevices | None:
        """GPUs that satisfy the claim, on the emptiest node that has them."""
        known = {name: ProfiledNode(node, {}) for name, node in state.nodes.items()}
        commitment = commitment_to(plan, known)
        found = {name: reservation(commitment, node, state.free(name)) for name, node in known.items()}
        able = [name for name, devices in found.items() if devices]
        if not able:
            return None
        name = emptiest(able, state, draw)
        return GivenDevices(name, found[name])


MODES: tuple[type[AnyScheduler] | type[WithExtender] | type[ByClaim], ...] = (AnyScheduler, WithExtender, ByClaim)


def emptiest(names: Iterable[str], state: ClusterState, draw: random.Random) -> str:
    """The node with the greatest share of free GPUs; of equal ones any."""
    names = list(names)
    most = max(state.free_share(name) for name in names)
    return draw.choice([name for name in names if state.free_share(name) == most])


def _free(state: ClusterState) -> tuple[NodeOffer, ...]:
    return tuple(NodeOffer(node, state.free(name)) for name, node in state.nodes.items())


def _published(node: Node) -> Node:
    devices = (replace(device, published=published(device), claims_only=True) for device in node.devices)
    return replace(node, devices=tuple(devices))


def _snapshot(state: ClusterState) -> Snapshot:
    """The cluster as the extender sees it, when the profiles are up to date."""
    snapshot = Snapshot()
    for name, node in state.nodes.items():
        held = (replace(device, allocated_to_pod_uid=state.holders.get(device.uuid, "")) for device in node.devices)
        status = {
            "source": node.source,
            "devices": [device.to_dict() for device in held],
            "links": [link.to_dict() for link in node.links],
        }
        snapshot.put_profile({"metadata": {"name": name}, "status": status})
    return snapshot
