"""Selects the forecaster with the least recent error, by source and overall.

The errors of a source are a list: the mean absolute error of each forecaster, in logarithms and exponentially weighted,
then the number of answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MARGIN = 0.97
"""Another forecaster must beat the first by 3 %: switching between equally good ones only adds noise."""

MEMORY = 200.0
"""Answers after which the weight of an observation is down to a third."""

LEAST_SEEN = 50
WORST = 3.0
"""Cap on the error of one request, in logarithms (a factor of 20), so that no single request decides."""


def best(by_source: Iterable[Sequence[float]]) -> int:
    """Index of the forecaster to use, by the errors of the first source, the narrowest one, with enough answers."""
    for errors in by_source:
        if errors[-1] >= LEAST_SEEN:
            return least(errors)
    return 0


def least(errors: Sequence[float]) -> int:
    """Index of the forecaster with the least error, if it beats the first by the margin; else that of the first."""
    found, bound = 0, MARGIN * errors[0]
    for index in range(1, len(errors) - 1):
        if errors[index] < bound:
            found, bound = index, errors[index]
    return found


def learn(by_source: Iterable[list[float]], errors: Sequence[float | None]) -> None:
    """Record each forecaster's error; None: it gave no forecast, which counts as `WORST`."""
    bounded = [WORST if error is None or error > WORST else error for error in errors]
    for known in by_source:
        known[-1] = count = known[-1] + 1.0
        weight = 1.0 / count if count < MEMORY else 1.0 / MEMORY
        for index, error in enumerate(bounded):
            known[index] += weight * (error - known[index])
