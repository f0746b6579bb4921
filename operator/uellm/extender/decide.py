"""The two decisions: which nodes cannot hold a plan, and which of the others are better. Pure over a snapshot.

    score = 6 * (1 - rank / nodes in the plan)      the planner's order: it knows speed and links
          + 4 * gpus / (free - promised)            tightness: what is left in one piece serves bigger plans later

rounded down to 0..10; a node that the plan does not name has no share of the first part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from uellm.extender.protocol import HIGHEST_SCORE, PLAN_ANNOTATION
from uellm.extender.snapshot import ResourceOffer, Snapshot
from uellm.hardware import Node

ORDER_POINTS = 6
TIGHTNESS_POINTS = HIGHEST_SCORE - ORDER_POINTS

# The scheduler counts equal sentences and puts each into the pod's condition: a thousand nodes must not make it a book.
MOST_SENTENCES = 12
NO_PROFILE = "no GPUNodeProfile, so no GPU is known there"
ONE_MORE = "cannot hold the plan either"

# Plans whose verdicts are kept; one takes some hundred bytes for each shape of node.
MOST_PLANS = 256

Fits = Callable[[Mapping[str, Any], Node, Sequence[str]], str | None]


class Judge:
    """Says why plans do not fit, and remembers what the planner said.

    Whether a plan fits depends on what a node's free GPUs are and how many, not on which: alike nodes are judged once,
    and the sentence that refuses them is told by the example of the first of them.
    """

    def __init__(self, fits: Fits) -> None:
        self._fits = fits
        self._verdicts: dict[str, dict[str, str | None]] = {}  # plan -> shape -> sentence or None

    def refusals(self, text: str, names: Iterable[str], snapshot: Snapshot) -> dict[str, str]:
        """Why the plan `text` cannot be held, for each of the nodes that cannot hold it."""
        try:
            plan = _read(text)
        except ValueError as error:
            return dict.fromkeys(names, _unreadable(error))
        verdicts = self._verdicts_on(text)
        said: set[str] = set()
        refused = {}
        for name in names:
            sentence = self._refusal(plan, snapshot.offer(name, plan["resourceName"]), verdicts)
            if sentence is not None:
                if sentence not in said and len(said) >= MOST_SENTENCES:
                    sentence = ONE_MORE
                said.add(sentence)
                refused[name] = sentence
        return refused

    def _verdicts_on(self, text: str) -> dict[str, str | None]:
        if text not in self._verdicts and len(self._verdicts) >= MOST_PLANS:
            del self._verdicts[next(iter(self._verdicts))]
        return self._verdicts.setdefault(text, {})

    def _refusal(
        self, plan: Mapping[str, Any], offer: ResourceOffer | None, verdicts: dict[str, str | None]
    ) -> str | None:
        if offer is None:
            return NO_PROFILE
        gpus, free, promised = plan["gpus"], len(offer.free), offer.promised
        if gpus > free - promised:
            taken = f", {promised} of them promised to pods that start" if promised else ""
            return f"the plan needs {gpus} {plan['resourceName']}, {free} free{taken}"
        if offer.shape not in verdicts:
            verdicts[offer.shape] = self._ask(plan, offer)
        return verdicts[offer.shape]

    def _ask(self, plan: Mapping[str, Any], offer: ResourceOffer) -> str | None:
        try:
            return self._fits(plan, offer.node, offer.free)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            return _unreadable(error)


def scores(text: str, names: Iterable[str], snapshot: Snapshot) -> dict[str, int]:
    """How well each node would do, 0..10. A plan that cannot be read ranks nothing."""
    try:
        plan = _read(text)
    except ValueError:
        return {}
    order = {name: rank for rank, name in enumerate(plan.get("nodes") or ())}
    return {name: _score(plan, order, name, snapshot.offer(name, plan["resourceName"])) for name in names}


def _read(text: str) -> dict[str, Any]:
    plan = json.loads(text)
    if not isinstance(plan, dict) or not isinstance(plan.get("gpus"), int) or plan["gpus"] < 1:
        raise ValueError("it has no positive number `gpus`")
    return {"resourceName": "nvidia.com/gpu", **plan}


def _unreadable(error: Exception) -> str:
    return f"the pod's annotation {PLAN_ANNOTATION} cannot be read ({type(error).__name__}: {error})"


def _score(plan: Mapping[str, Any], order: Mapping[str, int], name: str, offer: ResourceOffer | None) -> int:
    points = ORDER_POINTS * (1 - order[name] / len(order)) if name in order else 0.0
    left = len(offer.free) - offer.promised if offer else 0
    if left > 0:
        points += TIGHTNESS_POINTS * min(1.0, plan["gpus"] / left)
    return min(HIGHEST_SCORE, int(points))
