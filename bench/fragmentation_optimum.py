"""The least fragmentation that any rule for placing pods can have, computed exactly for a few nodes.

A cluster's state is what runs on each of its nodes. An event is a departure of any pod, with a chance that grows with
the GPUs in use, or an arrival of a pod, which must be placed where it fits and stays there. So this is a Markov
decision process, and relative value iteration finds the least long-run average of the fragmentation. A rule may know
how often each size comes and what is on each node; not who leaves next.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

TOLERANCE = 1e-3
"""Of the average, relative: both of its bounds are known."""
MOST_ITERATIONS = 5000


class SmallCluster:
    """All states of a few nodes, and what follows each of them."""

    def __init__(self, nodes: int, gpus: int, sizes: Mapping[int, float], load: float) -> None:
        """`sizes`: GPUs of a pod, and how often it comes."""
        self.chances = list(sizes.values())
        counts = [
            each
            for each in itertools.product(*(range(gpus // size + 1) for size in sizes))
            if sum(number * size for number, size in zip(each, sizes, strict=True)) <= gpus
        ]
        pods_of = np.array(counts)
        used_of = pods_of @ np.array(list(sizes))
        self.states = np.array(list(itertools.combinations_with_replacement(range(len(counts)), nodes)))
        self._weights = len(counts) ** np.arange(nodes - 1, -1, -1)
        self._keys = self.states @ self._weights
        used, pods = used_of[self.states].sum(axis=1), pods_of[self.states].sum(axis=(1, 2))
        self.free = gpus - used_of[self.states]
        lost_of = np.array(
            [free * sum(often for size, often in sizes.items() if free < size) for free in range(gpus + 1)]
        )
        all_free = np.maximum(self.free.sum(axis=1), 1)
        self.cost = lost_of[self.free].sum(axis=1) / all_free
        self.leave_chance = np.where(pods > 0, np.minimum(1.0, 0.5 * (used / (nodes * gpus * load)) ** 8), 0.0)
        self.arrivals: list[tuple[Any, Any]] = []
        """For each size: the state with the pod on each node, and where it fits."""
        self.departures: list[tuple[Any, Any]] = []
        """For each node and size: the state without such a pod, and the share of the pods that are such."""
        index = {each: number for number, each in enumerate(counts)}
        for kind in range(len(sizes)):
            more, less = (self._changed(counts, index, kind, step) for step in (1, -1))
            after = [self._after(node, more) for node in range(nodes)]
            self.arrivals.append((np.stack(after, axis=1), more[self.states] >= 0))
            for node in range(nodes):
                share = pods_of[self.states[:, node], kind] / np.maximum(pods, 1)
                self.departures.append((self._after(node, less), share))

    @staticmethod
    def _changed(counts: list[tuple[int, ...]], index: dict[tuple[int, ...], int], kind: int, step: int) -> Any:
        """What a node has with a pod more or less of a kind; -1 where that cannot be."""
        return np.array([index.get((*each[:kind], each[kind] + step, *each[kind + 1 :]), -1) for each in counts])

    def _after(self, node: int, change: Any) -> Any:
        """The state after a change of one node; the same state where the change cannot be."""
        changed, after = self.states.copy(), change[self.states[:, node]]
        changed[:, node] = np.where(after >= 0, after, changed[:, node])
        changed.sort(axis=1)
        return np.searchsorted(self._keys, changed @ self._weights)

    def average(self, *, best_fit: bool = False) -> float:
        """The long-run average of the fragmentation: of best fit, or the least that a rule can have."""
        value, same = np.zeros(len(self.states)), np.arange(len(self.states))
        chosen = [self._fullest(after, fits, same) for after, fits in self.arrivals] if best_fit else None
        for _ in range(MOST_ITERATIONS):
            worth = self.cost + value
            left = sum(share * worth[after] for after, share in self.departures)
            came: Any = 0.0
            for kind, (after, fits) in enumerate(self.arrivals):
                if chosen is not None:
                    came += self.chances[kind] * worth[chosen[kind]]
                else:
                    least = np.where(fits, worth[after], np.inf).min(axis=1)
                    came += self.chances[kind] * np.where(np.isfinite(least), least, worth)
            following = self.leave_chance * left + (1 - self.leave_chance) * came
            low, high = (following - value).min(), (following - value).max()
            value = following - following[0]
            if high - low <= TOLERANCE * high:
                return float((low + high) / 2)
        raise RuntimeError(f"no average after {MOST_ITERATIONS} iterations")

    def _fullest(self, after: Any, fits: Any, same: Any) -> Any:
        """The state when an arrival goes to the fullest node where it fits; the same one where it fits nowhere."""
        node = np.where(fits, -self.free, -np.inf).argmax(axis=1)
        return np.where(fits.any(axis=1), np.take_along_axis(after, node[:, None], axis=1)[:, 0], same)


def best_fit_and_optimum(nodes: int, gpus: int, sizes: Mapping[int, float], load: float) -> tuple[float, float]:
    """The average fragmentation of best fit, and the least of any rule."""
    cluster = SmallCluster(nodes, gpus, sizes, load)
    return cluster.average(best_fit=True), cluster.average()
