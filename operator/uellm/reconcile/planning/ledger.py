"""Who counts on which GPUs: what each node offers a service that is planned now. Pure but for the memory of plans.

A plan is a promise before any pod holds a device, and a pod holds devices before the node's profile says so. Both are
counted here, by number: which devices the kubelet will hand out nobody knows. Of the devices of a node

    free      are usable, and held by nobody or by the service itself,
    promised  is the number of free ones that others will take: the GPUs of their pods on the node which the profile
              does not show yet, and of their replicas without a node, each put on the first node of its plan
              that has room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from uellm.planner.request import NodeOffer
from uellm.planner.result import Plan
from uellm.reconcile.cache import Cache
from uellm.reconcile.fleet import Machine
from uellm.reconcile.names import Key, key_of
from uellm.reconcile.observe import wanted_replicas


class Commitment(NamedTuple):
    """What a plan promises to its service."""

    gpus: int  # per replica
    nodes: tuple[str, ...]  # the best first


class Ledger:
    """The plans in force, in the order in which they were made; it is ahead of what the API server knows."""

    def __init__(self) -> None:
        self._commitments: dict[Key, Commitment] = {}

    def commit(self, key: Key, commitment: Commitment) -> None:
        """Enter a plan; it keeps its place in the order where it merely changes."""
        self._commitments[key] = commitment

    def release(self, key: Key) -> None:
        """Strike out a plan."""
        self._commitments.pop(key, None)

    def get(self, key: Key) -> Commitment | None:
        """A service's plan, or None."""
        return self._commitments.get(key)

    def items(self) -> list[tuple[Key, Commitment]]:
        """Every plan, the oldest first."""
        return list(self._commitments.items())


class Holding(NamedTuple):
    """A pod that has a node, and so has devices or will have them until it has gone."""

    uid: str
    node: str
    gpus: int


class Claim(NamedTuple):
    """What a service other than the one being planned counts on."""

    commitment: Commitment
    replicas: int
    holdings: tuple[Holding, ...]

    @property
    def homeless(self) -> int:
        """Replicas without a node. A pod of an earlier plan stands for one where its place will do for this plan."""
        settled = sum(
            holding.gpus == self.commitment.gpus and holding.node in self.commitment.nodes for holding in self.holdings
        )
        return max(0, self.replicas - settled)


def claim(commitment: Commitment, replicas: int, pods: Iterable[Mapping[str, Any]]) -> Claim:
    """A service's claim, from its wanted replicas and its pods."""
    holdings = tuple(
        Holding(pod["metadata"]["uid"], pod["spec"]["nodeName"], pod.get("gpus") or commitment.gpus)
        for pod in pods
        if pod["spec"].get("nodeName") and pod["status"].get("phase") not in ("Failed", "Succeeded")
    )
    return Claim(commitment, replicas, holdings)


def commitment_of(document: Mapping[str, Any]) -> Commitment | None:
    """What the plan in a service's status promises; None where it has none."""
    try:
        plan = Plan.from_dict((document.get("status") or {})["plan"])
    except (KeyError, ValueError, TypeError):
        return None
    return Commitment(plan.gpus_per_replica, plan.nodes)


def claims_beside(cache: Cache, key: Key) -> list[Claim]:
    """The claims of all services but one, by what their statuses say."""
    promised = [(key_of(document), document, commitment_of(document)) for document in cache.services()]
    return [
        claim(commitment, wanted_replicas(document), cache.pods(other))
        for other, document, commitment in promised
        if commitment is not None and other != key
    ]


def offers(
    fleet: Sequence[Machine], claims: Sequence[Claim], own_pods: Iterable[Mapping[str, Any]]
) -> tuple[NodeOffer, ...]:
    """What each node offers to the service whose pods are `own_pods`, with the claims of all the others."""
    own = {pod["metadata"]["uid"] for pod in own_pods}
    # Others cannot move into devices that this service holds, though it may itself.
    unheld = {machine.facts.name: len(machine.free_for(set())) for machine in fleet}
    promised = _not_shown_yet(fleet, claims)
    for each in claims:
        for _ in range(each.homeless):
            home = _first_with_room(each.commitment, unheld, promised)
            if home is not None:
                promised[home] += each.commitment.gpus
    return tuple(
        NodeOffer(machine.facts, machine.free_for(own), min(promised[name], unheld[name]))
        for name, machine in ((machine.facts.name, machine) for machine in fleet)
    )


def generous(fleet: Sequence[Machine]) -> tuple[NodeOffer, ...]:
    """The same nodes as if nobody were there: what the hardware alone admits."""
    return tuple(NodeOffer(machine.facts, machine.usable) for machine in fleet)


def _not_shown_yet(fleet: Sequence[Machine], claims: Iterable[Claim]) -> Counter[str]:
    """By node: GPUs of pods that are on it and that its profile does not show yet."""
    shown = Counter((holder, machine.facts.name) for machine in fleet for holder in machine.holders.values())
    promised: Counter[str] = Counter()
    for holding in (holding for each in claims for holding in each.holdings):
        promised[holding.node] += max(0, holding.gpus - shown[holding.uid, holding.node])
    return promised


def _first_with_room(commitment: Commitment, unheld: Mapping[str, int], promised: Mapping[str, int]) -> str | None:
    return next(
        (node for node in commitment.nodes if unheld.get(node, 0) - promised.get(node, 0) >= commitment.gpus), None
    )


def hardware_changed(before: Sequence[NodeOffer], after: Sequence[NodeOffer]) -> bool:
    """True where a node came, went, or is not what it was."""
    return [offer.node for offer in before] != [offer.node for offer in after]


def grew(before: Sequence[NodeOffer], after: Sequence[NodeOffer]) -> bool:
    """True where a node offers more than it did, on the same hardware: else no better plan can have appeared."""
    return any(
        not set(new.free) <= set(old.free) or new.promised < old.promised
        for old, new in zip(before, after, strict=True)
    )
