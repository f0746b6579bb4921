"""The two decisions: which nodes cannot hold a plan, and how good the others are. Pure functions of a snapshot.

    score = 6 * (1 - rank / nodes in the plan)      the planner's order: it knows speed and links
          + 4 * gpus / (free - promised)            tightness: GPUs that stay together can serve bigger plans later

rounded down to 0..10; a node that the plan does not name has no share of the first part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from uellm.documents import UnreadableDocument
from uellm.extender.protocol import HIGHEST_SCORE
from uellm.extender.snapshot import ResourceOffer, Snapshot
from uellm.hardware import Node
from uellm.planner.handover.annotation import PlanAnnotation
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.refusals.sentences import sentence

ORDER_POINTS = 6
TIGHTNESS_POINTS = HIGHEST_SCORE - ORDER_POINTS

# The scheduler puts every distinct sentence into the pod's condition; this keeps it short with a thousand nodes.
MOST_SENTENCES = 12
NO_PROFILE = "no GPUNodeProfile, so no GPU is known there"
ONE_MORE = "cannot hold the plan either"

# Plans whose verdicts are kept; one takes some hundred bytes for each shape of node.
MOST_PLANS = 256

RefusalOn = Callable[[PlanAnnotation, Node, Sequence[str]], PlanRefusal | None]
"""Why a plan does not fit on any choice of a node's free devices; None where it does."""


class Refusal(NamedTuple):
    """Why a node is refused: a word to count by, and the sentence for people."""

    reason: str
    sentence: str


Verdicts = dict[str, Refusal | None]
"""By the shape of a node; None where the plan fits on it."""


def uncounted(reason: str) -> None:
    """Nobody counts refusals."""


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

    def refusals(self, text: str, names: Iterable[str], snapshot: Snapshot) -> dict[str, str]:
        """Why the plan `text` cannot be held, for each of the nodes that cannot hold it."""
        try:
            plan = PlanAnnotation.from_json(text)
        except UnreadableDocument as error:
            self._count("UnreadablePlan")
            return dict.fromkeys(names, str(error))
        verdicts = self._verdicts_on(text)
        said: set[str] = set()
        refused = {}
        for name in names:
            refusal = self._refusal(plan, snapshot.offer(name, plan.resource_name), verdicts)
            if refusal is not None:
                reason, sentence = refusal
                self._count(reason)
                if sentence not in said and len(said) >= MOST_SENTENCES:
                    sentence = ONE_MORE
                said.add(sentence)
                refused[name] = sentence
        return refused

    def _verdicts_on(self, text: str) -> Verdicts:
        if text not in self._verdicts and len(self._verdicts) >= MOST_PLANS:
            del self._verdicts[next(iter(self._verdicts))]
        return self._verdicts.setdefault(text, {})

    def _refusal(self, plan: PlanAnnotation, offer: ResourceOffer | None, verdicts: Verdicts) -> Refusal | None:
        if offer is None:
            return Refusal("NoProfile", NO_PROFILE)
        free, promised = len(offer.free), offer.promised
        if plan.gpus > free - promised:
            taken = f", {promised} of them promised to pods that start" if promised else ""
            said = f"the plan needs {plan.gpus} {plan.resource_name}, {free} free{taken}"
            return Refusal("TooFewFree", said)
        if offer.shape not in verdicts:
            refusal = self._refusal_on(plan, offer.node, offer.free)
            verdicts[offer.shape] = None if refusal is None else Refusal(type(refusal).__name__, sentence(refusal))
        return verdicts[offer.shape]


def scores(text: str, names: Iterable[str], snapshot: Snapshot) -> dict[str, int]:
    """How well each node would do, 0..10. A plan that cannot be read ranks nothing."""
    try:
        plan = PlanAnnotation.from_json(text)
    except UnreadableDocument:
        return {}
    order = {name: rank for rank, name in enumerate(plan.nodes)}
    return {name: _score(plan, order, name, snapshot.offer(name, plan.resource_name)) for name in names}


def _score(plan: PlanAnnotation, order: Mapping[str, int], name: str, offer: ResourceOffer | None) -> int:
    points = ORDER_POINTS * (1 - order[name] / len(order)) if name in order else 0.0
    left = len(offer.free) - offer.promised if offer else 0
    if left > 0:
        points += TIGHTNESS_POINTS * min(1.0, plan.gpus / left)
    return min(HIGHEST_SCORE, int(points))
