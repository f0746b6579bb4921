"""Compares a prediction with the targets of every class."""

from __future__ import annotations

from collections.abc import Sequence

from uellm.planner.cost.predict import Times
from uellm.planner.request import SloClass
from uellm.planner.target_outcome import TargetOutcome


def outcomes(times: Times, classes: Sequence[SloClass], output_tokens: int) -> list[TargetOutcome]:
    """Every target of the classes with its predicted value, in the order of the classes."""
    values = (("TTFT", times.ttft_s), ("TPOT", times.tpot_s), ("E2E", times.end_to_end_s(output_tokens)))
    return [
        TargetOutcome(name, each.name, value, target)
        for each in classes
        for (name, value), target in zip(values, (each.ttft_s, each.tpot_s, each.e2e_s), strict=True)
        if target is not None
    ]


def worst(found: Sequence[TargetOutcome]) -> TargetOutcome | None:
    """The target that is missed by most, or else met most narrowly; None if there is none."""
    return max(found, key=lambda entry: entry.ratio, default=None)
