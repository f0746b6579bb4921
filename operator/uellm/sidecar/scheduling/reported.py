"""The engine's steps as its own counters tell of them, for answers whose tokens are not seen."""

from __future__ import annotations

from typing import NamedTuple

from uellm.sidecar.scheduling.types import EngineSteps

REPORT_WEIGHT = 8
"""How many steps a report counts for. It is the mean of a hundred, but of different loads."""

LEAST_GAPS = 10.0
"""Gaps between tokens in the time between two reports, below which their mean is not taken for that of a step."""


class MeanStep(NamedTuple):
    """A step of the mean load and time."""

    gap_s: float
    """For each token of an answer."""
    tokens: float
    """Tokens that an answer got: above 1 with speculation."""
    prompt_tokens: float
    sequences: float


class ReportedSteps:
    """Compares the engine's reports."""

    def __init__(self) -> None:
        self._before: EngineSteps | None = None

    def since_last(self, steps: EngineSteps | None) -> MeanStep | None:
        """The mean step since the last report. None: too few of them, or the engine does not report them."""
        before, self._before = self._before, steps
        if steps is None or before is None:
            return None
        number, gap_s, gaps, prompt_tokens, answer_tokens = (new - old for new, old in zip(steps, before, strict=True))
        if gaps < LEAST_GAPS or number <= 0.0 or min(gap_s, prompt_tokens) < 0.0:
            return None
        tokens = max(answer_tokens / gaps, 1.0)
        return MeanStep(gap_s / gaps / tokens, tokens, prompt_tokens / number, gaps / number)
