"""The policies that are compared. Each is asked once an interval how many replicas there are to be."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from uellm.autoscaling import LEARN_S, Autoscaler, Bounds, Interval
from uellm.evaluate.autoscale.pool import PoolFigures

INTERVAL_S = 15.0
"""Between two looks; also the HPA controller's period."""
DOWN_S = 300.0
"""The HPA's default stabilisation when scaling down."""
TOLERANCE = 0.1
"""The HPA does nothing where the number is off by less."""


class ReplicaPolicy(Protocol):
    """Decides on the number of replicas."""

    def decide(self, figures: PoolFigures, wanted: int) -> int:
        """The number from now on; `wanted` are ready or starting."""


class Fixed:
    """Always the same number."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas

    def decide(self, figures: PoolFigures, wanted: int) -> int:
        """The number."""
        return self._replicas


class Clairvoyant:
    """Knows work of the whole day beforehand: what each moment needs, ordered ahead by the time to start."""

    def __init__(self, work: Any, utilisation: float, startup_s: float, bounds: Bounds) -> None:
        """`work` by interval, in seconds for each second; `utilisation` of each replica that is aimed at."""
        ahead = math.ceil(startup_s / INTERVAL_S) + 1
        needs = np.ceil(smoothed(work) / utilisation)
        needs = np.clip(_gaps_closed(needs, ahead), bounds.least, bounds.most)
        # What is needed between now and the moment at which a replica ordered now is ready.
        self._needs = np.array([needs[place : place + ahead + 1].max() for place in range(len(needs))], int)

    def decide(self, figures: PoolFigures, wanted: int) -> int:
        """The number."""
        return int(self._needs[min(round(figures.now_s / INTERVAL_S), len(self._needs) - 1)])


def smoothed(work: Any) -> Any:
    """The mean of each minute around, with the next interval in it."""
    return np.convolve(np.pad(work, (2, 2), mode="edge"), np.full(5, 0.2), mode="valid")


def _gaps_closed(needs: Any, intervals: int) -> Any:
    """A replica that is needed again before another could start is kept."""
    closed = needs.copy()
    for place in range(len(needs)):
        before, after = needs[max(0, place - intervals) : place + 1], needs[place : place + intervals + 1]
        closed[place] = max(needs[place], min(before.max(), after.max()))
    return closed


class Hpa:
    """The HorizontalPodAutoscaler's rule on one figure for each pod, with its defaults for everything else."""

    def __init__(self, target: float, bounds: Bounds) -> None:
        """`target`: requests, running and waiting, for each pod."""
        self._target = target
        self._bounds = bounds
        self._past: deque[tuple[float, int]] = deque()

    def decide(self, figures: PoolFigures, wanted: int) -> int:
        """The number."""
        return self._stabilised(
            figures.now_s, self._proposed((figures.running + figures.queued) / self._target, wanted)
        )

    def _proposed(self, replicas: float, wanted: int) -> int:
        if abs(replicas / wanted - 1.0) <= TOLERANCE:
            return wanted
        # Behaviour's default: the double or four more within 15 s.
        return min(math.ceil(replicas), max(2 * wanted, wanted + 4))

    def _stabilised(self, now_s: float, proposed: int) -> int:
        proposed = min(max(proposed, self._bounds.least), self._bounds.most)
        self._past.append((now_s, proposed))
        while self._past[0][0] < now_s - DOWN_S:
            self._past.popleft()
        return max(each for _, each in self._past)


class Keda(Hpa):
    """What KEDA makes of two triggers: the HPA's rule on waiting requests and on the used KV cache; the larger wins."""

    def __init__(self, waiting: float, kv_share: float, bounds: Bounds) -> None:
        """`waiting` requests for each pod, and the share of the KV cache, that are aimed at."""
        super().__init__(waiting, bounds)
        self._kv_share = kv_share

    def decide(self, figures: PoolFigures, wanted: int) -> int:
        """The number."""
        by_queue = figures.queued / self._target
        by_kv = figures.ready * figures.kv_share / self._kv_share
        return self._stabilised(figures.now_s, self._proposed(max(by_queue, by_kv), wanted))


class Ours:
    """UELLM's own."""

    def __init__(self, autoscaler: Autoscaler, bounds: Bounds, days: int) -> None:
        """`days` before the judged one, which the autoscaler has seen."""
        self._autoscaler = autoscaler
        self._bounds = bounds
        self._begin_s = days * 86_400.0

    def decide(self, figures: PoolFigures, wanted: int) -> int:
        """The number."""
        self._autoscaler.observe(interval(figures, self._begin_s))
        replicas = self._autoscaler.decide(self._begin_s + figures.now_s, wanted, self._bounds).replicas
        # As the operator does after its start.
        return replicas if figures.now_s >= LEARN_S else max(replicas, wanted)


def interval(figures: PoolFigures, begin_s: float) -> Interval:
    """The figures as the autoscaler takes them."""
    return Interval(
        begin_s + figures.now_s,
        INTERVAL_S,
        figures.arrived,
        figures.ended,
        figures.met,
        figures.ended,
        figures.prompt_tokens,
        figures.answered,
        figures.output_tokens,
        figures.running,
        figures.queued,
        figures.ready,
    )


def work_by_interval(arrival_s: Any, work_s: Any, end_s: float) -> Any:
    """Work that arrives in each interval, in seconds for each second."""
    count = math.ceil(end_s / INTERVAL_S)
    places = np.minimum((arrival_s / INTERVAL_S).astype(int), count - 1)
    return np.bincount(places, weights=work_s, minlength=count) / INTERVAL_S


def peak_replicas(work: Any, utilisation: float) -> int:
    """What the busiest five minutes need."""
    minutes = 20
    means = np.convolve(work, np.full(minutes, 1 / minutes), mode="valid") if len(work) >= minutes else work
    return max(1, math.ceil(float(means.max()) / utilisation))


def summary(replicas: Sequence[int]) -> dict[str, Any]:
    """`replicas` of a result: of the numbers at each look."""
    changes = sum(one != other for one, other in pairwise(replicas))
    return {"peak": max(replicas), "least": min(replicas), "mean": sum(replicas) / len(replicas), "changes": changes}
