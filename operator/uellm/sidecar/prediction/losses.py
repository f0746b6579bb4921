"""Selects the forecaster with the least recent error, by source and overall."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

MARGIN = 0.97
"""Another forecaster must beat the first by 3 %: switching between equally good ones only adds noise."""

MEMORY = 200.0
"""Requests after which the weight of an observation is down to a third."""

LEAST_SEEN = 50
MOST_SOURCES = 2048
WORST = 3.0
"""Cap on the error of one request, in logarithms (a factor of 20), so that no single request decides."""


class Losses:
    """Mean absolute error in logarithms by source and forecaster, exponentially weighted."""

    def __init__(self, forecasters: int) -> None:
        self._count = forecasters
        self.by_source: OrderedDict[Hashable, list[float]] = OrderedDict()
        """The error of each forecaster, then the number of requests."""

    def best(self, sources: Sequence[Hashable]) -> int:
        """Index of the forecaster to use, by the narrowest source with enough requests."""
        for source in sources:
            errors = self.by_source.get(source)
            if errors is not None and errors[-1] >= LEAST_SEEN:
                least = min(errors[:-1])
                return errors.index(least) if least < MARGIN * errors[0] else 0
        return 0

    def learn(self, sources: Sequence[Hashable], errors: Sequence[float | None]) -> None:
        """Record each forecaster's error; None: it gave no forecast, which counts as `WORST`."""
        bounded = [WORST if error is None or error > WORST else error for error in errors]
        for known in self._use(sources):
            known[-1] = count = known[-1] + 1.0
            weight = 1.0 / count if count < MEMORY else 1.0 / MEMORY
            for index, error in enumerate(bounded):
                known[index] += weight * (error - known[index])

    def _use(self, sources: Sequence[Hashable]) -> list[list[float]]:
        """The errors of these sources, the narrowest of which is now the most recently used."""
        by_source, errors = self.by_source, list[list[float]]()
        for source in reversed(sources):
            known = by_source.get(source)
            if known is None:
                known = by_source[source] = [0.0] * (self._count + 1)
            else:
                by_source.move_to_end(source)
            errors.append(known)
        while len(by_source) > MOST_SOURCES:
            by_source.popitem(last=False)
        return errors
