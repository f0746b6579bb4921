"""The price of an engine second: the density below which requests no longer fit into the engine's capacity.

This is a fractional knapsack. Requests are taken by density, the chance of being on time for each engine second, the
best first, until they use all of the engine's time. The price is the density of the last one. It is 0 while demand is
below capacity.
"""

from __future__ import annotations

from math import floor, log2

from uellm.sidecar.scheduling.halving import HalvingScale

HALF_LIFE_S = 30.0
"""Half-life of the remembered demand: longer than a burst, shorter than a change of the load."""

PER_OCTAVE = 4
UPDATE_EVERY_S = 0.5

Bucket = tuple[int, int]


class Price:
    """Demand in engine seconds by priority and density, with exponential decay."""

    def __init__(self) -> None:
        self._asked: dict[Bucket, float] = {}
        self._scale = HalvingScale(HALF_LIFE_S)
        self._updated_s = 0.0
        self._margin: Bucket | None = None

    def record_demand(self, priority: int, density: float, work_s: float, now_s: float) -> None:
        """Record the demand of a new request."""
        if density > 0.0:
            bucket = (priority, floor(PER_OCTAVE * log2(density)))
            self._asked[bucket] = self._asked.get(bucket, 0.0) + work_s * self._scaled(now_s)

    def worthwhile(self, priority: int, density: float, now_s: float) -> bool:
        """Whether a request of this density is at or above the price."""
        self._update(now_s)
        if self._margin is None:
            return True
        return (priority, floor(PER_OCTAVE * log2(density))) >= self._margin if density > 0.0 else False

    def density(self) -> float:
        """The price: requests on time per engine second."""
        return 0.0 if self._margin is None else 2.0 ** (self._margin[1] / PER_OCTAVE)

    def _scaled(self, now_s: float) -> float:
        scale, share = self._scale.at(now_s)
        if share != 1.0:
            self._asked = {bucket: work_s * share for bucket, work_s in self._asked.items() if work_s * share > 1e-6}
        return scale

    def _update(self, now_s: float) -> None:
        if now_s - self._updated_s < UPDATE_EVERY_S:
            return
        self._updated_s = now_s
        # A steady demand of 1 engine second per second adds up to this much under the decay.
        room_s = HALF_LIFE_S / 0.6931 * self._scaled(now_s)
        self._margin = None
        for bucket in sorted(self._asked, reverse=True):
            room_s -= self._asked[bucket]
            if room_s < 0.0:
                self._margin = bucket
                break
