"""Room for whole groups: replicas that span nodes, and whose pods the scheduler places one after the other.

The first pod of a group is let on a node only if the nodes together have room for all of its pods. That room is kept
for the others: else two groups could each get half of the GPUs that one needs, and wait for each other for ever.

A reservation ends after a minute if none of its pods has a node. If one has, the others' room is kept until the group
is complete or gone: its launchers wait for each other for some minutes only, and then all pods are made anew. After a
restart of the extender, the next pod of a group that is asked about reserves what is missing. Nobody asks about pods
that a queue holds back, so nothing is kept for them; and what was kept for a group ends with its last pod.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from uellm.documents import UnreadableDocument
from uellm.extender.decide import Judge, NodeRefusal, Verdict, scores
from uellm.extender.plans import read_plan
from uellm.extender.snapshot import Snapshot
from uellm.planner.handover.annotation import PlanAnnotation

RESERVED_S = 60.0


class Reservation(NamedTuple):
    """Room for the pods of one group."""

    resource_name: str
    gpus: int
    """Of each pod."""
    nodes: tuple[str, ...]
    """One for each pod that had none when this was made; a node may be named twice."""
    bound: tuple[str, ...]
    """The nodes of the pods that had one."""
    until_s: float

    def left(self, bound: Iterable[str]) -> Counter[str]:
        """The nodes for pods that still have none. `bound`: the nodes of those that have one now."""
        since = Counter(bound) - Counter(self.bound)
        left = Counter(self.nodes) - since
        # A pod may have gone elsewhere, before a restart or by another scheduler. It needs no room here.
        elsewhere = (since - Counter(self.nodes)).total()
        for node in sorted(left.elements(), reverse=True)[:elsewhere]:
            left[node] -= 1
        return +left


class Groups:
    """The reservations. They belong to one snapshot, which says what has become of them."""

    def __init__(
        self, judge: Judge, *, clock: Callable[[], float] = time.monotonic, reserved_s: float = RESERVED_S
    ) -> None:
        self._judge = judge
        self._clock = clock
        self._reserved_s = reserved_s
        self._held: dict[str, Reservation] = {}

    def kept(self, snapshot: Snapshot, *, beside: str = "") -> Counter[tuple[str, str]]:
        """GPUs by node and resource that are kept for pods of groups, but for one group."""
        self._drop_old(snapshot)
        kept: Counter[tuple[str, str]] = Counter()
        for group, held in self._held.items():
            if group != beside:
                for node, pods in held.left(snapshot.nodes_of_group(group)).items():
                    kept[node, held.resource_name] += pods * held.gpus
        return kept

    def refusals(
        self, group: str, text: str, plan: PlanAnnotation, names: Sequence[str], snapshot: Snapshot
    ) -> dict[str, str]:
        """Why a pod of the group may not be on each of these nodes; those that are left are kept for it."""
        kept = self.kept(snapshot, beside=group)
        offers = {name: snapshot.offer(name, plan.resource_name) for name in names}
        verdicts = {
            name: self._judge.verdict(text, plan, offer, kept[name, plan.resource_name])
            for name, offer in offers.items()
        }
        able = {name: verdict for name, verdict in verdicts.items() if None in verdict}
        room = {
            name: (len(offer.free) - offer.promised - kept[name, plan.resource_name]) // plan.gpus
            for name, offer in offers.items()
            if offer is not None and name in able
        }
        chosen = self._reserved(group, plan, able, snapshot) or self._reserve(group, text, plan, able, room, snapshot)
        refused = {name: verdict[0] for name, verdict in verdicts.items() if name not in able}
        if chosen:
            others = NodeRefusal("ReservedElsewhere", f"the room for its group is on {', '.join(sorted(chosen))}")
        else:
            others = NodeRefusal("NoRoomForGroup", _no_room(plan, room))
        return self._judge.told(refused | {name: others for name in able if name not in chosen})

    def _reserved(self, group: str, plan: PlanAnnotation, able: dict[str, Verdict], snapshot: Snapshot) -> set[str]:
        """The nodes that are kept for the group and can still hold a pod of it."""
        held = self._held.get(group)
        if held is None:
            return set()
        bound = snapshot.nodes_of_group(group)
        left = held.left(bound)
        usable = {name for name in left if name in able}
        if len(usable) < len(left) or left.total() != plan.nodes - len(bound):
            # What was kept is not there any more, or more is needed: all of it is chosen anew.
            del self._held[group]
            return set()
        return usable

    def _reserve(
        self,
        group: str,
        text: str,
        plan: PlanAnnotation,
        able: dict[str, Verdict],
        room: dict[str, int],
        snapshot: Snapshot,
    ) -> set[str]:
        """Keep room for all pods of the group that have no node; nothing where there is not enough for all."""
        bound = snapshot.nodes_of_group(group)
        missing = plan.nodes - len(bound)
        ranked = scores(text, able, snapshot)
        ordered = sorted(able, key=lambda name: (-ranked.get(name, 0), name))
        seats = [name for name in ordered for _ in range(min(missing, room[name]))]
        chosen = deal(seats, {name: _held_parts(able[name]) for name in able}, plan.nodes, missing)
        if missing < 1 or len(chosen) < missing:
            return set()
        until_s = self._clock() + self._reserved_s
        self._held[group] = Reservation(plan.resource_name, plan.gpus, tuple(chosen), tuple(bound), until_s)
        return set(chosen)

    def _drop_old(self, snapshot: Snapshot) -> None:
        now_s, ended = self._clock(), snapshot.take_ended_groups()
        self._held = {
            group: held
            for group, held in self._held.items()
            if group not in ended
            and (now_s < held.until_s or (snapshot.nodes_of_group(group) and held.left(snapshot.nodes_of_group(group))))
        }


def group_plan(text: str) -> PlanAnnotation | None:
    """The plan of a pod whose replica spans nodes; None for any other, and where it cannot be read."""
    try:
        plan = read_plan(text)
    except UnreadableDocument:
        return None
    return plan if plan.nodes > 1 else None


def deal(seats: Sequence[str], parts: dict[str, frozenset[int]], count: int, wanted: int) -> list[str]:
    """The first of the seats that together hold different parts, as many as are wanted, if there are as many.

    `parts`: those that each node can hold, of `count`. Each seat takes a part; where that is taken, its holder moves to
    another one that it can hold.
    """
    holder: dict[int, int] = {}

    def take(seat: int, tried: set[int]) -> bool:
        for part in range(count):
            if part in parts[seats[seat]] and part not in tried:
                tried.add(part)
                if part not in holder or take(holder[part], tried):
                    holder[part] = seat
                    return True
        return False

    chosen: list[str] = []
    for seat, name in enumerate(seats):
        if len(chosen) >= wanted:
            break
        if take(seat, set()):
            chosen.append(name)
    return chosen


def _held_parts(verdict: Verdict) -> frozenset[int]:
    return frozenset(part for part, refusal in enumerate(verdict) if refusal is None)


def _no_room(plan: PlanAnnotation, room: dict[str, int]) -> str:
    pods = sum(room.values())
    return f"a replica is {plan.nodes} pods, and the nodes have room for {min(pods, plan.nodes - 1)} of them now"
