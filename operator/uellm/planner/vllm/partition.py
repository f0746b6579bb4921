"""vLLM's own split of layers over pipeline stages."""

from __future__ import annotations


def even_split(layers: int, stages: int) -> tuple[int, ...]:
    """vLLM's own partition: the remainder goes one by one to the stages before the last, from the back.

    >>> even_split(61, 4), even_split(8, 3)
    ((15, 15, 16, 15), (3, 3, 2))
    """
    parts = [layers // stages] * stages
    for index in range(layers % stages):
        parts[-(index + 2)] += 1
    return tuple(parts)
