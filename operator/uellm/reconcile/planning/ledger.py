"""How many GPUs each service was promised, and what each node therefore offers to others. Pure; `Ledger` has state.

A plan promises devices before any pod holds them, and a pod holds devices before the node's profile shows it. Both are
counted here, as numbers, because it is not known which devices the kubelet will pick. Of the devices of a node

    free      are usable, and held by nobody or by the service itself,
    promised  is the number of free devices that others will take: GPUs of their pods on the node that the profile does
              not show yet, and GPUs of their replicas without a node, each counted on the first node that suits the
              plan and has room: the nodes that the plan names come first, but a pod may go to any that suits. Not
              those of pods that scheduling gates hold back: whoever set the gates decides when it is their turn. Nor
              those of pods that the API server refuses.

GPUs for replicas that will claim them are known by name: those of the plan, else others that its claim admits. They are
not offered to others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from uellm.hardware import StageNeeds, class_place
from uellm.planner.request import NodeOffer
from uellm.planner.result import Plan
from uellm.reconcile.cache import Cache
from uellm.reconcile.conditions import find
from uellm.reconcile.kueue import gates
from uellm.reconcile.names import Key, key_of
from uellm.reconcile.pods.refusal import PATIENCE, PODS_REFUSED
from uellm.reconcile.profiled_node import ProfiledNode
from uellm.reconcile.scaling.scaling import wanted_replicas
from uellm.reconcile.times import moment


class Commitment(NamedTuple):
    """What a plan promises to its service."""

    gpus: int
    """GPUs of each pod."""
    nodes: tuple[str, ...]
    """Nodes that can hold a pod, best first."""
    needs: tuple[int, ...] = ()
    """Bytes that each GPU of a pod must have, ascending: what makes other nodes suit. Empty: no other does."""
    alike: bool = False
    """GPUs share layers, so they must be of one product."""
    simulated: bool = False
    claims: tuple[StageNeeds, ...] = ()
    """What each GPU of a pod must be, where pods claim them; empty where the kubelet picks them."""
    planned: tuple[str, ...] = ()
    """The GPUs meant for the first of such replicas."""
    pods: int = 1
    """Pods of a replica, each on a node of its own."""


def commitment_to(plan: Plan, nodes: Mapping[str, ProfiledNode]) -> Commitment:
    """What a plan promises. `nodes`: the profiled nodes by name, and classes of nodes by the name of their place."""
    own = [nodes[name].facts for name in _places(plan) if name in nodes]
    simulated = bool(own) and all(node.simulated for node in own)
    gpus, needs = plan.gpus_per_replica // plan.nodes_per_replica, _needs(plan)
    found = Commitment(gpus, plan.nodes, needs, plan.tensor > 1, simulated, pods=plan.nodes_per_replica)
    if not plan.claims:
        return found
    claims = (StageNeeds(stage.product, stage.memory_bytes) for stage in plan.stages for _ in range(plan.tensor))
    return found._replace(claims=tuple(claims), planned=plan.devices)


def _needs(plan: Plan) -> tuple[int, ...]:
    """Bytes that each GPU of a pod must have, ascending. Any pod of a group may get any of its nodes."""
    stages = max(1, plan.pipeline // plan.nodes_per_replica)
    parts = (plan.stages[first : first + stages] for first in range(0, plan.pipeline, stages))
    by_part = [sorted(stage.memory_bytes for stage in part for _ in range(plan.tensor)) for part in parts]
    return tuple(map(max, *by_part)) if len(by_part) > 1 else tuple(*by_part)


def _places(plan: Plan) -> tuple[str, ...]:
    return plan.nodes or tuple(map(class_place, plan.node_classes))


class Ledger:
    """The plans in force, in the order in which they were made. It is ahead of what the API server knows."""

    def __init__(self) -> None:
        self._commitments: dict[Key, Commitment] = {}
        self.version = 0
        """Grows with every change."""
        self._changed: dict[Key, None] = {}

    def commit(self, key: Key, commitment: Commitment) -> None:
        """Enter a plan. A plan that replaces another of the same service keeps its place in the order."""
        if self._commitments.get(key) != commitment:
            self._commitments[key] = commitment
            self.version += 1
            self._changed[key] = None

    def release(self, key: Key) -> None:
        """Remove a plan."""
        if self._commitments.pop(key, None) is not None:
            self.version += 1
            self._changed[key] = None

    def touch(self, key: Key) -> None:
        """What is counted for a service has changed, although its plan has not."""
        self.version += 1
        self._changed[key] = None

    def get(self, key: Key) -> Commitment | None:
        """A service's plan, or None."""
        return self._commitments.get(key)

    def take_changed(self) -> list[Key]:
        """The services whose promise has changed since the last call, in the order of the changes."""
        taken, self._changed = list(self._changed), {}
        return taken

    def items(self) -> list[tuple[Key, Commitment]]:
        """Every plan, the oldest first."""
        return list(self._commitments.items())


class BoundPod(NamedTuple):
    """A pod that has a node: it holds devices there, or is about to."""

    uid: str
    node: str
    gpus: int


class Claim(NamedTuple):
    """What a service other than the one being planned was promised."""

    commitment: Commitment
    pods: int
    """Of all its replicas together; not those that the API server refuses."""
    bound_pods: tuple[BoundPod, ...]
    queued: int = 0
    """Pods that scheduling gates hold back."""

    def unplaced(self, nodes: Mapping[str, ProfiledNode]) -> int:
        """Pods that look for a node.

        A pod of an earlier plan counts as placed where its node and GPUs suit this plan.
        """
        settled = sum(
            pod.gpus == self.commitment.gpus and suits(self.commitment, pod.node, nodes) for pod in self.bound_pods
        )
        return max(0, self.pods - settled - self.queued)


def suits(commitment: Commitment, name: str, nodes: Mapping[str, ProfiledNode]) -> bool:
    """Whether a node may hold a replica, whoever has its GPUs now: the plan names it, or its GPUs are large enough."""
    if name in commitment.nodes:
        return True
    node = nodes.get(name)
    if node is None or not commitment.needs or node.facts.simulated != commitment.simulated:
        return False
    if commitment.claims:
        return bool(reservation(commitment, node, node.usable))
    return _suits(commitment.needs, commitment.alike, node.kinds)


def reservation(commitment: Commitment, node: ProfiledNode, free: Iterable[str]) -> tuple[str, ...]:
    """Free GPUs of the node that a replica's claim would get; empty where they do not suffice, or it claims none."""
    left = set(free)
    if commitment.planned and left.issuperset(commitment.planned):
        return commitment.planned
    chosen: list[str] = []
    for needs in commitment.claims:
        able = (
            device.uuid
            for device in node.facts.devices
            if device.uuid in left
            and device.published is not None
            and needs.met_by(device.product, device.memory_bytes)
        )
        uuid = next(able, None)
        if uuid is None:
            return ()
        left.discard(uuid)
        chosen.append(uuid)
    return tuple(chosen)


def seats(commitment: Commitment, node: ProfiledNode, offer: NodeOffer) -> int:
    """Pods for which there is room on a node as it is offered."""
    most = max(0, len(offer.free) - offer.promised) // commitment.gpus
    if not commitment.claims:
        return most
    left, count = set(offer.free), 0
    while count < most and (taken := reservation(commitment, node, left)):
        left -= set(taken)
        count += 1
    return count


@lru_cache(maxsize=4096)
def _suits(needs: tuple[int, ...], alike: bool, kinds: tuple[tuple[int, str], ...]) -> bool:
    """The smallest GPUs decide, because the kubelet may choose them."""
    smallest = kinds[: len(needs)]
    if len(smallest) < len(needs) or (alike and len({product for _, product in kinds}) > 1):
        return False
    return all(memory_bytes >= need for (memory_bytes, _), need in zip(smallest, needs, strict=True))


def claim(commitment: Commitment, replicas: int, pods: Iterable[Mapping[str, Any]], *, grows: bool = True) -> Claim:
    """A service's claim, from its wanted replicas and its pods. `grows`: those that are not there may be created."""
    unfinished = [pod for pod in pods if pod["status"].get("phase") not in ("Failed", "Succeeded")]
    bound_pods = tuple(
        BoundPod(pod["metadata"]["uid"], pod["spec"]["nodeName"], pod.get("gpus") or commitment.gpus)
        for pod in unfinished
        if pod["spec"].get("nodeName")
    )
    wanted = replicas * commitment.pods
    number = wanted if grows else min(wanted, len(unfinished))
    return Claim(commitment, number, bound_pods, sum(bool(gates(pod)) for pod in unfinished))


def commitment_of(document: Mapping[str, Any], nodes: Mapping[str, ProfiledNode]) -> Commitment | None:
    """What the plan in a service's status promises; None where it has none."""
    try:
        plan = Plan.from_dict((document.get("status") or {})["plan"])
    except (KeyError, ValueError, TypeError):
        return None
    return commitment_to(plan, nodes)


def _is_refused_pods(document: Mapping[str, Any], now: datetime) -> bool:
    """Whether the operator has reported for a minute that the API server refuses pods of the service."""
    stalled = find(document.get("status") or {}, "Stalled")
    if stalled is None or stalled["status"] != "True" or stalled["reason"] != PODS_REFUSED:
        return False
    return now - moment(stalled["lastTransitionTime"]) >= PATIENCE


def claims_of_others(cache: Cache, key: Key, now: datetime) -> list[Claim]:
    """The claims of all services but one, as their statuses have them."""
    nodes = known_nodes(cache)
    promised = [(key_of(document), document, commitment_of(document, nodes)) for document in cache.services()]
    return [
        claim(commitment, wanted_replicas(document), cache.pods(other), grows=not _is_refused_pods(document, now))
        for other, document, commitment in promised
        if commitment is not None and other != key
    ]


def offers(
    nodes: Sequence[ProfiledNode], claims: Sequence[Claim], own_pods: Iterable[Mapping[str, Any]]
) -> tuple[NodeOffer, ...]:
    """What each node offers to the service whose pods are `own_pods`, given the claims of all others."""
    own = {pod["metadata"]["uid"] for pod in own_pods}
    # Devices that this service holds are free to itself, but not to the others.
    unheld = {node.facts.name: len(node.free_for(set())) for node in nodes}
    promised = _not_shown_yet(nodes, claims)
    named = by_name(nodes)
    free = {name: frozenset(node.free_for(set())) for name, node in named.items()}
    for each in claims:
        for _ in range(each.unplaced(named)):
            seat = first_seat(each.commitment, named, free, unheld, promised)
            if seat is not None:
                promised[seat.node] += each.commitment.gpus
                free[seat.node] -= set(seat.devices)
    return tuple(
        offer_of(node, node.free_for(own), promised[node.facts.name], free[node.facts.name], unheld[node.facts.name])
        for node in nodes
    )


def offer_of(
    node: ProfiledNode, free: tuple[str, ...], promised: int, unreserved: frozenset[str], unheld: int
) -> NodeOffer:
    """What a node offers to a service. `free`: to it; `promised`: GPUs for others, of which some are reserved by name;
    `unreserved`: those of the `unheld` GPUs that nobody holds which are not.
    """
    reserved = unheld - len(unreserved)
    if not reserved:
        return NodeOffer(node.facts, free, min(promised, unheld))
    withheld = set(node.free_for(set())) - unreserved
    return NodeOffer(node.facts, tuple(uuid for uuid in free if uuid not in withheld), min(promised, unheld) - reserved)


def by_name(nodes: Iterable[ProfiledNode]) -> dict[str, ProfiledNode]:
    """The nodes by their names."""
    return {node.facts.name: node for node in nodes}


def known_nodes(cache: Cache) -> dict[str, ProfiledNode]:
    """The profiled nodes by name, and a node of each class by the name of its place."""
    classes = {each.node.name: ProfiledNode(each.node, {}) for each in cache.node_classes()}
    return {**classes, **by_name(cache.profiled_nodes())}


def hardware_offers(nodes: Sequence[ProfiledNode]) -> tuple[NodeOffer, ...]:
    """The same nodes as if every usable GPU were free."""
    return tuple(NodeOffer(node.facts, node.usable) for node in nodes)


def _not_shown_yet(nodes: Sequence[ProfiledNode], claims: Iterable[Claim]) -> Counter[str]:
    """By node: GPUs of its pods that its profile does not show yet."""
    shown = Counter((holder, node.facts.name) for node in nodes for holder in node.holders.values())
    promised: Counter[str] = Counter()
    for pod in (pod for each in claims for pod in each.bound_pods):
        promised[pod.node] += max(0, pod.gpus - shown[pod.uid, pod.node])
    return promised


class Seat(NamedTuple):
    """Where a replica without a node is counted."""

    node: str
    devices: tuple[str, ...] = ()
    """The GPUs that are reserved for its claim."""


def first_seat(
    commitment: Commitment,
    nodes: Mapping[str, ProfiledNode],
    free: Mapping[str, frozenset[str]],
    unheld: Mapping[str, int],
    promised: Mapping[str, int],
) -> Seat | None:
    """The place of a replica; None where there is none. `free`: GPUs that nobody holds and that are not reserved."""
    if not commitment.claims:
        home = first_with_room(commitment, nodes, unheld, promised)
        return None if home is None else Seat(home)
    for name in dict.fromkeys((*commitment.nodes, *(nodes if commitment.needs else ()))):
        if name in nodes and unheld.get(name, 0) - promised.get(name, 0) >= commitment.gpus:
            devices = reservation(commitment, nodes[name], free.get(name, ()))
            if devices:
                return Seat(name, devices)
    return None


def first_with_room(
    commitment: Commitment, nodes: Mapping[str, ProfiledNode], unheld: Mapping[str, int], promised: Mapping[str, int]
) -> str | None:
    """The node on which a replica is counted. `unheld`: devices that nobody holds; `promised`: of these, to others."""

    def has_room(name: str) -> bool:
        return unheld.get(name, 0) - promised.get(name, 0) >= commitment.gpus

    planned = next(filter(has_room, commitment.nodes), None)
    if planned is not None or not commitment.needs:
        return planned
    return next((name for name in nodes if has_room(name) and suits(commitment, name, nodes)), None)


def hardware_changed(before: Sequence[NodeOffer], after: Sequence[NodeOffer]) -> bool:
    """True where a node joined, left, or has other facts."""
    return [offer.node for offer in before] != [offer.node for offer in after]


def offers_more(before: Sequence[NodeOffer], after: Sequence[NodeOffer]) -> bool:
    """True where a node offers more than before, on the same hardware: only then can there be a better plan."""
    return any(
        new is not old and (not set(new.free) <= set(old.free) or new.promised < old.promised)
        for old, new in zip(before, after, strict=True)
    )
