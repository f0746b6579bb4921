"""Accuracy of the predictions over the last requests."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import exp, sqrt

from uellm.sidecar.prediction.online import Prediction

REQUESTS = 1000


@dataclass(frozen=True)
class Accuracy:
    """Over the last requests; None: too few requests, or all alike."""

    requests: int
    mean_absolute_error_tokens: float | None
    bucket_share: float | None
    """Share in the predicted power-of-two bucket, [2^k, 2^(k+1)), as the paper counts it."""
    coverage_p80: float | None
    coverage_p90: float | None
    tau: float | None
    """Kendall's tau-b of predicted and real lengths: 1 is the right order, 0 none."""
    tau_within_source: float | None
    """Tau among the requests of one source, averaged over the sources by their number of requests."""
    tau_source_median: float | None
    """Tau if each source's median were the prediction."""


class Track:
    """Keeps the last predictions with the real lengths."""

    def __init__(self) -> None:
        self._last: deque[tuple[float, float, float, float | None, object, int]] = deque(maxlen=REQUESTS)

    def add(self, prediction: Prediction, tokens: int) -> None:
        """Add a request that ended by itself, not at its limit."""
        median = prediction.medians[0]
        source = None if median is None else exp(median)
        self._last.append((prediction.p50, prediction.p80, prediction.p90, source, prediction.sources[0], tokens))

    def accuracy(self) -> Accuracy:
        """The figures. Takes about 3 ms, so call it at a scrape only."""
        count = len(self._last)
        if count < 2:
            return Accuracy(count, None, None, None, None, None, None, None)
        real = [entry[-1] for entry in self._last]
        known = [entry for entry in self._last if entry[3] is not None]
        return Accuracy(
            count,
            sum(abs(entry[0] - entry[-1]) for entry in self._last) / count,
            sum(int(entry[0]).bit_length() == entry[-1].bit_length() for entry in self._last) / count,
            sum(entry[-1] <= entry[1] for entry in self._last) / count,
            sum(entry[-1] <= entry[2] for entry in self._last) / count,
            kendall_tau([entry[0] for entry in self._last], real),
            self._within(),
            kendall_tau([entry[3] or 0.0 for entry in known], [entry[-1] for entry in known]),
        )

    def _within(self) -> float | None:
        by_source: dict[object, list[tuple[float, int]]] = defaultdict(list)
        for entry in self._last:
            by_source[entry[4]].append((entry[0], entry[-1]))
        weighted = [
            (tau, len(pairs))
            for pairs in by_source.values()
            if (tau := kendall_tau([p for p, _ in pairs], [r for _, r in pairs])) is not None
        ]
        return sum(tau * n for tau, n in weighted) / sum(n for _, n in weighted) if weighted else None


def kendall_tau(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Kendall's tau-b in O(n log n) (Knight, 1966); None if either sequence is constant.

    tau_b = (concordant - discordant) / sqrt((pairs - ties of one) * (pairs - ties of the other))
    """
    pairs = sorted(zip(one, other, strict=True))
    count = len(pairs) * (len(pairs) - 1) // 2
    ties_one = _ties(sorted(one))
    ties_other = _ties(sorted(other))
    if count in (ties_one, ties_other):
        return None
    discordant, seen = 0, list[float]()
    for _, value in pairs:
        discordant += len(seen) - bisect_right(seen, value)
        insort(seen, value)
    net = count - ties_one - ties_other + _ties(pairs) - 2 * discordant
    return net / sqrt((count - ties_one) * (count - ties_other))


def _ties(ordered: Sequence[object]) -> int:
    runs = (len(list(group)) for _, group in groupby(ordered))
    return sum(run * (run - 1) // 2 for run in runs)
