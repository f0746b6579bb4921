"""Results of pure functions, kept by the identity of their argument.

A node's facts are large values that live for days and are asked about in every search. To compare or hash one costs
more than most questions about it, so the object itself is the key. It is kept with its result, so that no other object
can take its identity meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

KEPT_NODES = 4096
"""Nodes, or what they offer, of which something is kept at a time."""

A = TypeVar("A")
R = TypeVar("R")


def by_identity(maxsize: int) -> Callable[[Callable[[A], R]], Callable[[A], R]]:
    """Keep the results for the last `maxsize` arguments. For pure functions of one immutable argument."""

    def decorate(function: Callable[[A], R]) -> Callable[[A], R]:
        known: dict[int, tuple[A, R]] = {}

        @wraps(function)
        def remembered(argument: A) -> R:
            entry = known.get(id(argument))
            if entry is None:
                if len(known) >= maxsize:
                    del known[next(iter(known))]
                entry = known[id(argument)] = argument, function(argument)
            return entry[1]

        return remembered

    return decorate
