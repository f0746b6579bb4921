"""The search over all shapes that the model and the overrides allow, all nodes, and the number of replicas.

    the plan = the best (shape, replicas, node) by ranking.py: fewest GPUs in all for the workload, within the targets

A shape gets the smallest number r of replicas for which the nodes that can carry 1/r of the workload have room for r.
Shapes are examined in the order of their bounds: first by their number of GPUs, then on the ideal node of each family
(node_classes.py), then on every node. The search ends when a shape that was examined on every node beats all other
bounds. Most shapes are pruned by their bound; a shape that could be the best never is.

A search has a budget of placements. When it is spent, the search ends with the best shape that was examined on every
node by then, and says so. It is counted in placements and not in seconds, so that the same request gets the same plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from uellm.planner import constants as c
from uellm.planner.nodes.groups import takes
from uellm.planner.nodes.node_classes import PoolClass, PoolFamily, families_of, family_of
from uellm.planner.nodes.pools import Pool
from uellm.planner.request import PlanRequest
from uellm.planner.search import ranking
from uellm.planner.search.candidate import Candidate
from uellm.planner.search.replicas import Refused, Sized, Sizer
from uellm.planner.search.shapes import shapes
from uellm.planner.shape import Shape


class PlacedShape(NamedTuple):
    """A shape with its number of replicas, and one replica's candidate on each class of nodes that can carry it."""

    shape: Shape
    replicas: int
    members: tuple[tuple[PoolClass, Candidate], ...]
    """Best first."""
    placed: bool
    """Whether that many replicas have room now."""

    @property
    def best(self) -> Candidate:
        """The candidate on the best node."""
        return self.members[0][1]

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return self.shape.gpus * self.replicas

    @property
    def key(self) -> ranking.Key:
        """See ranking.py."""
        return ranking.key(self.best, self.replicas, placed=self.placed)


class Rejection(NamedTuple):
    """A shape that no node admits, with the reason on the node that comes nearest to it."""

    shape: Shape
    pool: Pool
    """Of the node, or of the group of nodes."""
    refused: Refused

    @property
    def node(self) -> str:
        """Its name."""
        return self.pool.node


@dataclass(slots=True)
class SearchResult:
    """The result of a search. `bounded`: pruned shapes, with a lower bound of their GPUs in all.

    `proven`: no shape that was not examined can be better.
    """

    best: PlacedShape | None = None
    others: list[PlacedShape] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    bounded: list[tuple[Shape, int]] = field(default_factory=list)
    proven: bool = True


_Entry = tuple[ranking.Key, int, int, PlacedShape | Shape]
"""Key or its bound, how often the shape was looked at, its order, and what was found."""


class Search:
    """One search for one request."""

    def __init__(self, request: PlanRequest, pools: Sequence[Pool], groups: Sequence[Pool] = ()) -> None:
        """`groups`: of nodes, each with the pools that it is made of among `pools`."""
        self.request = request
        self.pools, self.groups = pools, groups
        self.sizer = Sizer(request)
        self.families = (*families_of(pools), *map(family_of, groups))
        self._ideals: dict[Shape, list[tuple[PoolFamily, Sized | Refused]]] = {}

    def again(self, request: PlanRequest) -> Search:
        """The search on the same nodes for another request."""
        return Search(request, self.pools, self.groups)

    @property
    def classes(self) -> Iterator[PoolClass]:
        """Every class of nodes once."""
        return (entry for family in self.families for entry in family.classes)

    def run(self) -> SearchResult:
        """The best placed shape."""
        found = SearchResult()
        heap: list[_Entry] = []
        for order, shape in enumerate(self.every_shape()):
            heap.append((ranking.least(self.request, shape.gpus), 0, order, shape))
        heapq.heapify(heap)
        while heap:
            _, looks, order, entry = self._next(heap, found)
            if isinstance(entry, PlacedShape):
                found.best = entry
                break
            outcome = self._ideal(entry) if looks == 0 else self._on_nodes(entry)
            if isinstance(outcome, Rejection):
                found.rejections.append(outcome)
            elif isinstance(outcome, PlacedShape):
                heapq.heappush(heap, (outcome.key, 2, order, outcome))
            else:
                heapq.heappush(heap, (outcome, 1, order, entry))
        for _, _, _, entry in sorted(heap, key=lambda each: each[:3]):
            if isinstance(entry, PlacedShape):
                found.others.append(entry)
            else:
                found.bounded.append((entry, self._fewest(entry)))
        return found

    def _next(self, heap: list[_Entry], found: SearchResult) -> _Entry:
        """The entry with the least bound; once the budget is spent, the best that needs no further look."""
        spent = self.sizer.attempts > c.MOST_PLACEMENTS
        settled = [each for each in heap if isinstance(each[3], PlacedShape)] if spent else []
        if not settled:
            return heapq.heappop(heap)
        best = min(settled, key=lambda each: each[:3])
        found.proven = all(best[:3] <= each[:3] for each in heap)
        heap.remove(best)
        return best

    def every_shape(self) -> Iterator[Shape]:
        """The shapes for which some node has enough GPUs, fewest GPUs first."""
        most = max((entry.pool.sure for entry in self.classes), default=0)
        if self.request.gpus_max is not None:
            most = min(most, self.request.gpus_max)
        on_one = max((pool.sure for pool in self.pools), default=0)
        for gpus in range(self.request.gpus_min, most + 1):
            for shape in shapes(self.request, gpus):
                if shape.gpus <= on_one or self._spans(shape):
                    yield shape

    def _spans(self, shape: Shape) -> bool:
        """Whether a group of nodes is asked for the shape."""
        own = self.request.overrides
        chosen = own.pipeline is not None or own.layers is not None
        short = chosen or shape.pipeline <= c.MOST_STAGES_OVER_NODES
        return short and any(takes(group, shape) for group in self.groups)

    def on_node(self, pool: Pool, shape: Shape) -> Sized | Refused:
        """A shape on one node, for an explanation."""
        return self.sizer.least(pool, shape)

    def _ideal(self, shape: Shape) -> ranking.Key | PlacedShape | Rejection:
        """An upper bound of what the shape can do. It is exact where every node is as good as the ideal one."""
        taking = (family for family in self.families if takes(family.ideal, shape))
        sized = [(family, self.sizer.least(family.ideal, shape)) for family in taking]
        self._ideals[shape] = sized
        admitted = [(family, outcome) for family, outcome in sized if isinstance(outcome, Sized)]
        if not admitted:
            return self._rejection(shape, [(family.classes[0].pool, outcome) for family, outcome in sized])
        if all(len(family.classes) == 1 for family, _ in admitted):
            return self._settled(shape, [(family.classes[0], outcome) for family, outcome in admitted])
        rooms = [sum(entry.room(shape.gpus) for entry in family.classes) for family, _ in admitted]
        placed = sum(rooms) >= min(outcome.replicas for _, outcome in admitted)
        return min(ranking.bound(outcome.candidate, outcome.replicas, placed=placed) for _, outcome in admitted)

    def _on_nodes(self, shape: Shape) -> PlacedShape | Rejection:
        """The shape on every node of the families whose ideal node admits it."""
        sized: list[tuple[PoolClass, Sized]] = []
        refused: list[tuple[Pool, Sized | Refused]] = []
        for family, ideal in self._ideals[shape]:
            if isinstance(ideal, Refused):
                continue
            for entry in family.classes:
                alone = len(family.classes) == 1
                outcome = ideal if alone else self.sizer.least(entry.pool, shape, ideal.replicas)
                if isinstance(outcome, Sized):
                    sized.append((entry, outcome))
                else:
                    refused.append((entry.pool, outcome))
        return self._settled(shape, sized) if sized else self._rejection(shape, refused)

    def _settled(self, shape: Shape, sized: Sequence[tuple[PoolClass, Sized]]) -> PlacedShape:
        replicas, placed = _replicas(shape, sized)
        members = []
        for entry, outcome in sized:
            if outcome.replicas > replicas:
                continue
            found: Candidate | Refused = outcome.candidate
            if outcome.replicas < replicas:
                found = self.sizer.attempt(entry.pool, shape, replicas)
            if isinstance(found, Candidate):
                members.append((entry, found))
        members.sort(key=lambda member: ranking.key(member[1], replicas, placed=placed))
        return PlacedShape(shape, replicas, tuple(members), placed)

    def _rejection(self, shape: Shape, refused: Sequence[tuple[Pool, Sized | Refused]]) -> Rejection:
        nearest = min(
            ((pool, outcome) for pool, outcome in refused if isinstance(outcome, Refused)),
            key=lambda entry: (
                not entry[1].missed,
                -min(entry[0].sure, shape.gpus),
                -sum(device.memory_bytes for device in entry[0].devices),
                entry[0].node,
            ),
        )
        return Rejection(shape, *nearest)

    def _fewest(self, shape: Shape) -> int:
        """A lower bound of the shape's GPUs in all."""
        ideals = [outcome.replicas for _, outcome in self._ideals.get(shape, ()) if isinstance(outcome, Sized)]
        return shape.gpus * min(ideals, default=1)


def _replicas(shape: Shape, sized: Sequence[tuple[PoolClass, Sized]]) -> tuple[int, bool]:
    """The least sufficient number of replicas that the nodes have room for; else the least sufficient number."""
    for replicas in sorted({outcome.replicas for _, outcome in sized}):
        room = sum(entry.room(shape.gpus) for entry, outcome in sized if outcome.replicas <= replicas)
        if room >= replicas:
            return replicas, True
    return min(outcome.replicas for _, outcome in sized), False
