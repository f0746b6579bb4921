"""From the number of layers per stage to layer ranges."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, pairwise


def spans(layers: Iterable[int]) -> list[tuple[int, int]]:
    """For each stage, its first layer and the one after its last.

    >>> spans((5, 3))
    [(0, 5), (5, 8)]
    """
    return list(pairwise(accumulate(layers, initial=0)))
