"""The two decisions: which nodes cannot hold a plan, and how good the others are. Pure functions of a snapshot.

    points = 4 * memory rate / best memory rate     the slowest free GPU: decoding is as fast as memory
           + 2 * link rate / best link rate         the slowest link between free GPUs; all of it for plans of one GPU
           + 2.5 * (2 - more holes) / 3             GPUs that stay together can serve bigger plans later
           + 1.5 * (1 - spare / most spare)         so do whole nodes: others are filled before them

Spare are the GPUs that would be left free. Plans ask for 1, 2, 4 or 8 GPUs, so a node's free GPUs count as holes of
such sizes: 7 are three holes, of 4, 2 and 1. A plan that fills a hole leaves one less; one that breaks into 8 GPUs to
use one of them leaves two more. Rates are those of the profiles; the best ones, and the most spare, are those among the
nodes that are asked about. Rates within a tenth of the best count as the best, so that noise does not spread replicas
over loose nodes.

The scheduler takes whole numbers from 0 to 10, so few that nodes with other points would often have one score. So the
points are stretched over 1..10: the worst of the nodes has 1, the best 10, and 0 is a node without a profile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from uellm.documents import UnreadableDocument
from uellm.extender.plans import MOST_PLANS, read_plan
from uellm.extender.protocol import HIGHEST_SCORE
from uellm.extender.snapshot import NodeSpeed, NodeStanding, ResourceOffer, Snapshot
from uellm.hardware import Node
from uellm.planner.handover.annotation import PlanAnnotation
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.refusals.sentences import sentence

MEMORY_POINTS = 4
LINK_POINTS = 2
HOLE_POINTS = 2.5
SPARE_POINTS = HIGHEST_SCORE - MEMORY_POINTS - LINK_POINTS - HOLE_POINTS
FEWEST_MORE_HOLES, MOST_MORE_HOLES = -1, 2
AS_GOOD = 0.9

LOWEST_SCORE = 1
_EQUAL_POINTS = 1e-9

# The scheduler puts every distinct sentence into the pod's condition; this keeps it short with a thousand nodes.
MOST_SENTENCES = 12
NO_PROFILE = "no GPUNodeProfile, so no GPU is known there"
ONE_MORE = "cannot hold the plan either"

RefusalOn = Callable[[PlanAnnotation, Node, Sequence[str]], PlanRefusal | None]
"""Why a plan does not fit on any choice of a node's free devices; None where it does."""


class NodeRefusal(NamedTuple):
    """Why a node is refused: a word to count by, and the sentence for people."""

    reason: str
    sentence: str


Verdict = tuple[NodeRefusal | None, ...]
"""For each pod of a replica; None where the node holds it."""
Verdicts = dict[str, Verdict]
"""By the shape of a node."""
Reserved = Callable[[str, str], int]
"""Node, resource -> GPUs that are kept for pods that have no node yet."""
_Kind = tuple[str, int, int, int] | None
"""Nodes for which it is the same have the same verdict; None for those without a profile."""


def uncounted(reason: str) -> None:
    """Nobody counts refusals."""


def nothing_reserved(node: str, resource_name: str) -> int:
    """No group waits for its pods."""
    return 0


class Judge:
    """Judges whether plans fit on nodes, and remembers the planner's verdicts.

    Whether a plan fits depends on the kinds and the number of a node's free GPUs alone, so identical nodes are judged
    once; the sentence that refuses them names the first of them. `count` is called with the reason of every refusal.
    """

    def __init__(self, refusal_on: RefusalOn, count: Callable[[str], None] = uncounted) -> None:
        self._refusal_on = refusal_on
        self._count = count
        self._verdicts: dict[str, Verdicts] = {}
        """By plan."""

    def refusals(
        self, text: str, names: Iterable[str], snapshot: Snapshot, reserved: Reserved = nothing_reserved
    ) -> dict[str, str]:
        """Why the plan `text` cannot be held, for each of the nodes that cannot hold it, or any pod of a replica."""
        try:
            plan = read_plan(text)
        except UnreadableDocument as error:
            self._count("UnreadablePlan")
            return dict.fromkeys(names, str(error))
        alike: dict[_Kind, Verdict] = {}
        refused: dict[str, NodeRefusal | None] = {}
        for name in names:
            offer = snapshot.offer(name, plan.resource_name)
            kept = reserved(name, plan.resource_name)
            kind = None if offer is None else (offer.shape, offer.promised, offer.unusable, kept)
            verdict = alike.get(kind)
            if verdict is None:
                verdict = alike[kind] = self.verdict(text, plan, offer, kept)
            if None not in verdict:
                refused[name] = verdict[0]
        return self.told(refused)

    def told(self, refused: Mapping[str, NodeRefusal | None]) -> dict[str, str]:
        """Count the refusals, and put them into few words."""
        given: set[str] = set()
        sentences = {}
        for name, refusal in refused.items():
            if refusal is None:
                continue
            self._count(refusal.reason)
            known = refusal.sentence in given or len(given) < MOST_SENTENCES
            sentences[name] = refusal.sentence if known else ONE_MORE
            given.add(sentences[name])
        return sentences

    def verdict(self, text: str, plan: PlanAnnotation, offer: ResourceOffer | None, kept: int = 0) -> Verdict:
        """Whether a node holds the plan; of a replica that spans nodes, which of its pods it holds.

        `kept`: GPUs of the node that are reserved for pods that have no node yet.
        """
        if offer is None:
            return (NodeRefusal("NoProfile", NO_PROFILE),)
        free, promised = len(offer.free), offer.promised
        if plan.gpus > free - promised - kept:
            taken = f", {promised} of them promised to pods that start" if promised else ""
            waited_for = f", {kept} of them reserved for groups of pods" if kept else ""
            unusable = f", {offer.unusable} quarantined or excluded" if offer.unusable else ""
            message = f"the plan needs {plan.gpus} {plan.resource_name}, {free} free{taken}{waited_for}{unusable}"
            return (NodeRefusal("TooFewFree", message),)
        verdicts = self._verdicts_on(text)
        if offer.shape not in verdicts:
            verdicts[offer.shape] = self._judged(plan, offer)
        return verdicts[offer.shape]

    def _judged(self, plan: PlanAnnotation, offer: ResourceOffer) -> Verdict:
        refusals = (self._refusal_on(part, offer.node, offer.free) for part in plan.parts())
        return tuple(
            None if refusal is None else NodeRefusal(type(refusal).__name__, sentence(refusal)) for refusal in refusals
        )

    def _verdicts_on(self, text: str) -> Verdicts:
        if text not in self._verdicts and len(self._verdicts) >= MOST_PLANS:
            del self._verdicts[next(iter(self._verdicts))]
        return self._verdicts.setdefault(text, {})


def scores(text: str, names: Iterable[str], snapshot: Snapshot) -> dict[str, int]:
    """How well each node would do, 0..10. A plan that cannot be read ranks nothing."""
    try:
        plan = read_plan(text)
    except UnreadableDocument:
        return {}
    standings: dict[str, NodeStanding | None] = {}
    for name in names:
        offer = snapshot.offer(name, plan.resource_name)
        standings[name] = None if offer is None else offer.standing
    kinds = {standing for standing in standings.values() if standing is not None}
    best = NodeSpeed(
        max((kind.speed.memory_bytes_per_s for kind in kinds), default=0.0),
        max((kind.speed.link_bytes_per_s for kind in kinds), default=0.0),
    )
    most_spare = max((_spare(plan, kind) for kind in kinds), default=0)
    points = {kind: _points(plan, best, most_spare, kind) for kind in kinds}
    low, high = min(points.values(), default=0.0), max(points.values(), default=0.0)
    scored: dict[NodeStanding | None, int] = {kind: _stretched(own, low, high) for kind, own in points.items()}
    scored[None] = 0
    return {name: scored[standing] for name, standing in standings.items()}


def _points(plan: PlanAnnotation, best: NodeSpeed, most_spare: int, node: NodeStanding) -> float:
    points = MEMORY_POINTS * _share(node.speed.memory_bytes_per_s, best.memory_bytes_per_s)
    points += LINK_POINTS * (1.0 if plan.gpus == 1 else _share(node.speed.link_bytes_per_s, best.link_bytes_per_s))
    spare = _spare(plan, node)
    points += HOLE_POINTS * _tidiness(spare, plan.gpus)
    return points + SPARE_POINTS * (1.0 - spare / most_spare if most_spare else 1.0)


def _spare(plan: PlanAnnotation, node: NodeStanding) -> int:
    return max(0, node.unpromised - plan.gpus)


def _tidiness(spare: int, taken: int) -> float:
    """1 where the plan fills a hole of the node, 0 where it leaves two holes more."""
    more = spare.bit_count() - (spare + taken).bit_count()
    more = min(max(more, FEWEST_MORE_HOLES), MOST_MORE_HOLES)
    return (MOST_MORE_HOLES - more) / (MOST_MORE_HOLES - FEWEST_MORE_HOLES)


def _stretched(points: float, low: float, high: float) -> int:
    if high - low < _EQUAL_POINTS:
        return HIGHEST_SCORE
    return LOWEST_SCORE + round((HIGHEST_SCORE - LOWEST_SCORE) * (points - low) / (high - low))


def _share(rate: float, best: float) -> float:
    share = rate / best if best else 1.0
    return 1.0 if share >= AS_GOOD else share
