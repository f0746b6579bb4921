"""What somebody reads of every service. The cache keeps them packed, so only those that have changed are read anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from uellm.kube import LLMSERVICE
from uellm.reconcile.cache import Cache
from uellm.reconcile.stored import Object

T = TypeVar("T")


class EachService(Generic[T]):
    """The result of `read` for every service of the cache."""

    def __init__(self, cache: Cache, read: Callable[[Object], T]) -> None:
        self._cache = cache
        self._read = read
        self._known: dict[tuple[str, str], tuple[Any, T]] = {}

    def now(self) -> dict[tuple[str, str], T]:
        """By namespace and name, in this order."""
        before, self._known = self._known, {}
        for place, stored in sorted(self._cache.snapshot(LLMSERVICE).items()):
            known = before.get(place)
            if known is None or known[0] != stored.identity:
                known = stored.identity, self._read(stored.object)
            self._known[place] = known
        return {place: found for place, (_, found) in self._known.items()}
