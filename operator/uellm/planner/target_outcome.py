"""One target with its predicted value."""

from __future__ import annotations

from typing import NamedTuple

from uellm.planner import constants as c


class TargetOutcome(NamedTuple):
    """One target of one class with its predicted value, in seconds."""

    name: str
    """TTFT, TPOT or E2E."""
    class_name: str
    predicted_s: float
    target_s: float

    @property
    def ratio(self) -> float:
        """Predicted over target. Above 1 the target is missed."""
        return self.predicted_s / self.target_s

    @property
    def missed(self) -> bool:
        """Whether the target is not met."""
        return self.ratio > 1 + c.TARGET_TOLERANCE
