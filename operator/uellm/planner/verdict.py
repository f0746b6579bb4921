"""What is said of a plan besides its shape: whether it keeps the targets, and how it was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What sums of floats in another order may differ by.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class SloVerdict:
    """Whether the targets are predicted to be kept; if not, what cannot be had, and the smallest change that helps."""

    feasible: bool
    constraint: str = ""
    change: str = ""

    def to_dict(self) -> dict[str, Any]:
        """`status.plan.slo`."""
        entry: dict[str, Any] = {"feasible": self.feasible}
        if self.constraint:
            entry["constraint"] = self.constraint
        if self.change:
            entry["change"] = self.change
        return entry

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SloVerdict:
        """The inverse of `to_dict`."""
        return cls(bool(data["feasible"]), data.get("constraint", ""), data.get("change", ""))


@dataclass(frozen=True, slots=True)
class SearchFigures:
    """How the plan was found: shapes there are, those proven to be no better without a look at every node, placements
    worked out, and how far the split of layers may be from the best one at most."""

    shapes: int
    left_out: int
    placements: int
    gap: float  # of the split's cost, to its proven lower bound; 0: it is the best

    def to_dict(self) -> dict[str, Any]:
        """`status.plan.search`."""
        return {
            "shapes": self.shapes,
            "leftOut": self.left_out,
            "placements": self.placements,
            "optimal": self.gap <= _ROUNDING,
            "gapPercent": f"{max(0.0, self.gap) * 100:.2f}",
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchFigures:
        """The inverse of `to_dict`, to its rounding."""
        gap = float(data.get("gapPercent", 0)) / 100
        return cls(int(data["shapes"]), int(data["leftOut"]), int(data["placements"]), gap)
