"""What a prediction is held against: every class's targets, and the order of what misses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from uellm.planner.cost.predict import Times
from uellm.planner.request import SloClass

# Predictions this close to a target meet it: a float's last digits decide nothing.
SLACK = 1e-9


class TargetOutcome(NamedTuple):
    """One target of one class beside what is predicted; seconds."""

    name: str  # TTFT | TPOT | E2E
    class_name: str
    predicted_s: float
    target_s: float

    @property
    def ratio(self) -> float:
        """Above 1: missed."""
        return self.predicted_s / self.target_s

    @property
    def missed(self) -> bool:
        """Whether the target is not met."""
        return self.ratio > 1 + SLACK


def outcomes(times: Times, classes: Sequence[SloClass], output_tokens: int) -> list[TargetOutcome]:
    """Every target of the classes with what is predicted for it, in the classes' order."""
    values = (("TTFT", times.ttft_s), ("TPOT", times.tpot_s), ("E2E", times.end_to_end_s(output_tokens)))
    return [
        TargetOutcome(name, each.name, value, target)
        for each in classes
        for (name, value), target in zip(values, (each.ttft_s, each.tpot_s, each.e2e_s), strict=True)
        if target is not None
    ]


def worst(found: Sequence[TargetOutcome]) -> TargetOutcome | None:
    """The target that is missed most, or met most narrowly; None where there is none."""
    return max(found, key=lambda entry: entry.ratio, default=None)
