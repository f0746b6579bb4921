"""Adaptive conformal inference (Gibbs and Candès, 2021): quantile levels that are adjusted until coverage is right.

A window's P90 covers nine in ten of the next values only while the stream is stationary. The level is therefore moved:
up by `STEP * target` after a miss, down by `STEP * (1 - target)` after a hit. In the long run the share of hits equals
the target, whatever the stream does.
"""

from __future__ import annotations

STEP = 0.005

LEAST, MOST = 0.5, 0.999
"""Bounds of the level."""


class ConformalLevel:
    """The adjusted level for one target coverage, 0 to 1."""

    def __init__(self, target: float, level: float | None = None) -> None:
        self.target = target
        self.level = target if level is None else level

    def learn(self, *, covered: bool) -> None:
        """Adjust the level; `covered`: the value did not exceed its prediction."""
        move = -(1.0 - self.target) if covered else self.target
        level = self.level + STEP * move
        self.level = LEAST if level < LEAST else MOST if level > MOST else level
