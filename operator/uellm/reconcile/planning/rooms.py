"""What each node offers, kept up to date change by change: `ledger.offers` without its walk over all promises.

A service's promise is counted once, and again when its plan, its replicas, its pods or the nodes that they are on have
changed. So a question costs what has changed since the last one, however many services there are. A replica that was
given a place keeps it until somebody else holds the GPUs there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from uellm.planner.request import NodeOffer
from uellm.reconcile.names import Key
from uellm.reconcile.planning.ledger import Claim, first_seat, offer_of
from uellm.reconcile.profiled_node import ProfiledNode

_NONE: frozenset[str] = frozenset()


class _CountedPromise(NamedTuple):
    """What is counted for one service."""

    order: int
    """Of promises that are counted together, the older ones come first."""
    claim: Claim
    promised: Counter[str]
    """GPUs by node."""
    homes: frozenset[str]
    """Nodes on which replicas without a node are counted."""
    reserved: Mapping[str, frozenset[str]]
    """By node: GPUs that are reserved for their claims."""
    homeless: bool
    """No node has room for some replica."""

    @property
    def nodes(self) -> set[str]:
        """Every node whose change may change the entry."""
        return {*self.homes, *(pod.node for pod in self.claim.bound_pods)}


class Rooms:
    """The promises to all services, counted on the nodes."""

    def __init__(self) -> None:
        self._nodes: dict[str, ProfiledNode] = {}
        self._free: dict[str, tuple[str, ...]] = {}
        """By node: usable devices that nobody holds."""
        self._room: dict[str, int] = {}
        self._unreserved: dict[str, frozenset[str]] = {}
        """By node: of these devices, those that are not reserved for anybody's claim."""
        self._promised: Counter[str] = Counter()
        self._entries: dict[Key, _CountedPromise] = {}
        self._orders = 0
        self._concerned: defaultdict[str, set[Key]] = defaultdict(set)
        self._homeless: set[Key] = set()
        self._room_grew = False
        self._made: dict[str, dict[tuple[tuple[str, ...], int], NodeOffer]] = {}
        """Offers by node: equal ones are one object, so that whoever has seen it knows it again."""
        self._everyones: tuple[NodeOffer, ...] | None = None

    def set_nodes(self, nodes: Iterable[ProfiledNode], changed: Collection[str]) -> None:
        """All nodes in their order, and the names of those that joined, left or are other than before."""
        before, self._nodes = self._nodes, {node.facts.name: node for node in nodes}
        for name in changed:
            was, node = before.get(name), self._nodes.get(name)
            if was is None or node is None or was.facts is not node.facts:
                self._made.pop(name, None)
            self._free.pop(name, None)
            self._room.pop(name, None)
            self._unreserved.pop(name, None)
            if node is not None:
                self._free[name] = node.free_for(set())
                self._room[name] = len(self._free[name])
                self._unreserved[name] = frozenset(self._free[name]) - self._reserved_on(name)
        self._everyones, self._room_grew = None, True
        self._count_again({key for name in changed for key in self._concerned.get(name, ())})

    def set_claim(self, key: Key, claim: Claim | None) -> None:
        """What a service was promised; None: nothing."""
        before = self._entries.get(key)
        if before is None and claim is not None:
            self._orders += 1
            self._put_in(key, self._orders, claim)
            self._make_room(claim)
        elif before is not None and claim is None:
            self._take_out(key)
        elif before is not None and claim is not None and before.claim != claim:
            self._take_out(key)
            self._put_in(key, before.order, claim)
            self._make_room(claim)

    def offers(self, key: Key, own_pods: Iterable[Mapping[str, Any]]) -> tuple[NodeOffer, ...]:
        """What each node offers to a service: its own devices count as free, and its own promise does not count."""
        everyones, own = self.offers_beside_all(), list(own_pods)
        entry, uids = self._entries.get(key), {pod["metadata"]["uid"] for pod in own}
        promised = Counter[str]() if entry is None else entry.promised
        own_reserved = {} if entry is None else entry.reserved
        touched = {*promised, *(pod["spec"].get("nodeName") for pod in own)}
        return tuple(
            self._offer(offer.node.name, uids, promised[offer.node.name], own_reserved.get(offer.node.name, _NONE))
            if offer.node.name in touched
            else offer
            for offer in everyones
        )

    def offers_beside_all(self) -> tuple[NodeOffer, ...]:
        """What each node offers to one that has no devices and no promise yet."""
        if self._room_grew:
            self._room_grew = False
            self._count_again(self._homeless)
        if self._everyones is None:
            self._everyones = tuple(self._offer(name, set(), 0, _NONE) for name in self._nodes)
        return self._everyones

    def _offer(self, name: str, own: set[str], own_promised: int, own_reserved: frozenset[str]) -> NodeOffer:
        node = self._nodes[name]
        free = node.free_for(own) if own else self._free[name]
        # Its own reservation is free to itself, as far as nobody else has taken it meanwhile.
        unreserved = self._unreserved[name] | (own_reserved & set(self._free[name]))
        offer = offer_of(node, free, self._promised[name] - own_promised, unreserved, self._room[name])
        made = self._made.setdefault(name, {})
        return made.setdefault((offer.free, offer.promised), offer)

    def _reserved_on(self, name: str) -> frozenset[str]:
        keys = self._concerned.get(name, ())
        return frozenset().union(
            *(self._entries[key].reserved.get(name, _NONE) for key in keys if key in self._entries)
        )

    def _count_again(self, keys: Iterable[Key]) -> None:
        entries = sorted(((key, self._entries[key]) for key in set(keys)), key=lambda each: each[1].order)
        for key, _ in entries:
            self._take_out(key)
        for key, entry in entries:
            self._put_in(key, entry.order, entry.claim)
        for _, entry in entries:
            self._make_room(entry.claim)

    def _make_room(self, claim: Claim) -> None:
        """Pods of this claim may sit where others were counted, whose replicas then go elsewhere."""
        for name in {pod.node for pod in claim.bound_pods}:
            if self._promised[name] > self._room.get(name, 0):
                self._count_again({key for key in self._concerned[name] if name in self._entries[key].homes})

    def _take_out(self, key: Key) -> None:
        entry = self._entries.pop(key)
        self._promised.subtract(entry.promised)
        for name, devices in entry.reserved.items():
            if name in self._free:
                self._unreserved[name] |= devices & set(self._free[name])
        for name in entry.nodes:
            self._concerned[name].discard(key)
        self._homeless.discard(key)
        self._everyones, self._room_grew = None, True

    def _put_in(self, key: Key, order: int, claim: Claim) -> None:
        promised: Counter[str] = Counter()
        for pod in claim.bound_pods:
            node = self._nodes.get(pod.node)
            shown = 0 if node is None else sum(holder == pod.uid for holder in node.holders.values())
            promised[pod.node] += max(0, pod.gpus - shown)
        self._promised.update(promised)
        reserved: defaultdict[str, frozenset[str]] = defaultdict(frozenset)
        homes, homeless = set(), False
        for _ in range(claim.unplaced(self._nodes)):
            seat = first_seat(claim.commitment, self._nodes, self._unreserved, self._room, self._promised)
            homeless = seat is None
            if seat is None:
                break  # nor is there any for the next one
            homes.add(seat.node)
            promised[seat.node] += claim.commitment.gpus
            self._promised[seat.node] += claim.commitment.gpus
            if seat.devices:
                reserved[seat.node] |= set(seat.devices)
                self._unreserved[seat.node] -= set(seat.devices)
        self._entries[key] = entry = _CountedPromise(order, claim, promised, frozenset(homes), dict(reserved), homeless)
        for name in entry.nodes:
            self._concerned[name].add(key)
        if homeless:
            self._homeless.add(key)
        self._everyones = None
