"""What an engine second is worth: the density below which requests would not fit in, were all of the better served.

A fluid knapsack: requests by their density (chance of being on time per engine second), the best first, until their
engine seconds per second of time are what the engine has. While less is asked for than it has, the price is 0.
"""

from __future__ import annotations

from math import floor, log2

HALF_LIFE_S = 30.0
"""Demand is remembered this long: longer than a burst, shorter than a change of the load."""

PER_OCTAVE = 4
UPDATE_EVERY_S = 0.5
REBASE = 2.0**40

Bucket = tuple[int, int]


class Price:
    """Engine seconds asked for, by priority and density, and engine seconds handed out; both fading."""

    def __init__(self) -> None:
        self._asked: dict[Bucket, float] = {}
        self._start_s: float | None = None
        self._updated_s = 0.0
        self._margin: Bucket | None = None

    def record_demand(self, priority: int, density: float, work_s: float, now_s: float) -> None:
        """A request arrived."""
        if density > 0.0:
            bucket = (priority, floor(PER_OCTAVE * log2(density)))
            self._asked[bucket] = self._asked.get(bucket, 0.0) + work_s * self._scale(now_s)

    def worthwhile(self, priority: int, density: float, now_s: float) -> bool:
        """Whether a request of this density is not below the price."""
        self._update(now_s)
        if self._margin is None:
            return True
        return (priority, floor(PER_OCTAVE * log2(density))) >= self._margin if density > 0.0 else False

    def density(self) -> float:
        """The price: requests on time per engine second."""
        return 0.0 if self._margin is None else 2.0 ** (self._margin[1] / PER_OCTAVE)

    def _scale(self, now_s: float) -> float:
        if self._start_s is None:
            self._start_s = now_s
        scale: float = 2.0 ** ((now_s - self._start_s) / HALF_LIFE_S)
        if scale > REBASE:
            self._asked = {bucket: work_s / scale for bucket, work_s in self._asked.items() if work_s / scale > 1e-6}
            self._start_s, scale = now_s, 1.0
        return scale

    def _update(self, now_s: float) -> None:
        if now_s - self._updated_s < UPDATE_EVERY_S:
            return
        self._updated_s = now_s
        # An even load of 1 second per second, remembered so, adds up to this much.
        room_s = HALF_LIFE_S / 0.6931 * self._scale(now_s)
        self._margin = None
        for bucket in sorted(self._asked, reverse=True):
            room_s -= self._asked[bucket]
            if room_s < 0.0:
                self._margin = bucket
                break
