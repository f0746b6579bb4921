"""The share of targets missed at each utilisation: an estimate that measurements replace."""

from __future__ import annotations

from collections.abc import Callable

BINS = 32
WIDTH = 0.05
"""Of a bin, in utilisation; the last bin holds everything above."""
PRIOR_REQUESTS = 1_000.0
"""Requests that the estimate counts for in each bin."""
PRIOR_MISSES = 20.0
"""Misses that the estimate counts for as a whole."""
MOST_REQUESTS = 200_000.0
"""More requests than these do not make a bin surer: older ones fade, so that it follows changes."""


class MissCurve:
    """Requests and misses by utilisation. `estimate` gives the share missed at a utilisation before any measurement."""

    def __init__(self) -> None:
        self._requests = [0.0] * BINS
        self._missed = [0.0] * BINS

    def observe(self, utilisation: float, requests: int, missed: int) -> None:
        """Requests ended while the replicas had this utilisation."""
        place = min(int(utilisation / WIDTH), BINS - 1)
        fade = min(1.0, MOST_REQUESTS / max(1.0, self._requests[place] + requests))
        self._requests[place] = (self._requests[place] + requests) * fade
        self._missed[place] = (self._missed[place] + missed) * fade

    def shares(self, estimate: Callable[[float], float]) -> list[float]:
        """The share missed in each bin: measured and estimated by their weights, and never falling with utilisation."""
        priors = [min(1.0, estimate((place + 0.5) * WIDTH)) for place in range(BINS)]
        factor = self._factor(priors)
        weights, shares = [], []
        for place, prior in enumerate(priors):
            # Above saturation misses follow from the utilisation alone.
            scaled = min(1.0, prior * factor) if (place + 1) * WIDTH <= 1.0 else prior
            weights.append(PRIOR_REQUESTS + self._requests[place])
            shares.append((PRIOR_REQUESTS * scaled + self._missed[place]) / weights[-1])
        return _never_falling(shares, weights)

    def _factor(self, priors: list[float]) -> float:
        """By how much the estimate is off where there are measurements; it is taken to be off as much elsewhere."""
        expected = sum(count * prior for count, prior in zip(self._requests, priors, strict=True))
        return (sum(self._missed) + PRIOR_MISSES) / (expected + PRIOR_MISSES)


def at(shares: list[float], utilisation: float) -> float:
    """The share at a utilisation, by linear interpolation between the bins' centres."""
    place = utilisation / WIDTH - 0.5
    if place <= 0:
        return shares[0]
    low = int(place)
    if low >= BINS - 1:
        return shares[-1]
    return shares[low] + (place - low) * (shares[low + 1] - shares[low])


def _never_falling(values: list[float], weights: list[float]) -> list[float]:
    """The closest sequence that never falls, by weighted squares (pool adjacent violators; Barlow et al. 1972)."""
    blocks: list[list[float]] = []  # value, weight, count
    for value, weight in zip(values, weights, strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            later, earlier = blocks.pop(), blocks.pop()
            total = earlier[1] + later[1]
            value_of_both = (earlier[0] * earlier[1] + later[0] * later[1]) / total
            blocks.append([value_of_both, total, earlier[2] + later[2]])
    return [value for value, _, count in blocks for _ in range(int(count))]
