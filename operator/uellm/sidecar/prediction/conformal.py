"""Levels that are moved until what they promise comes true: adaptive conformal inference (Gibbs and Candès, 2021).

A window's P90 covers nine in ten of the next values only while the stream stays as it was. So the level that is looked
up is moved: up by `STEP * target` after a miss, down by `STEP * (1 - target)` after a hit; over time the share of hits
then is the target whatever the stream does.
"""

from __future__ import annotations

STEP = 0.005


class ConformalLevel:
    """A level for one target."""

    def __init__(self, target: float, level: float | None = None) -> None:
        self.target = target
        self.level = target if level is None else level

    def learn(self, *, covered: bool) -> None:
        """Whether the value stayed within what was predicted for it."""
        move = -(1.0 - self.target) if covered else self.target
        self.level = min(0.999, max(0.5, self.level + STEP * move))
