"""Selects the forecaster with the least recent error, by source and overall.

The errors of a source are a list: the mean absolute error of each forecaster, in logarithms and exponentially weighted,
then the number of answers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from uellm.sidecar.prediction.recent import Recent

MARGIN = 0.97
"""Another forecaster must beat the first by 3 %: switching between equally good ones only adds noise."""

MEMORY = 200.0
"""Answers after which the weight of an observation is down to a third."""

LEAST_SEEN = 50
MOST_SOURCES = 2048
WORST = 3.0
"""Cap on the error of one request, in logarithms (a factor of 20), so that no single request decides."""


def by_source(forecasters: int) -> Recent[list[float]]:
    """Room for the errors of so many forecasters."""
    return Recent(lambda: [0.0] * (forecasters + 1), MOST_SOURCES)


def best(known: Recent[list[float]], sources: Sequence[Hashable]) -> int:
    """Index of the forecaster to use, by the first source, the narrowest one, with enough answers."""
    for errors in known.known(sources):
        if errors[-1] >= LEAST_SEEN:
            least = min(errors[:-1])
            return errors.index(least) if least < MARGIN * errors[0] else 0
    return 0


def learn(of_sources: Iterable[list[float]], errors: Sequence[float | None]) -> None:
    """Record each forecaster's error; None: it gave no forecast, which counts as `WORST`."""
    bounded = [WORST if error is None or error > WORST else error for error in errors]
    for known in of_sources:
        known[-1] = count = known[-1] + 1.0
        weight = 1.0 / count if count < MEMORY else 1.0 / MEMORY
        for index, error in enumerate(bounded):
            known[index] += weight * (error - known[index])
