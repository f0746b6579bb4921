"""Values by key, of which only the recently used ones are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class Recent(Generic[ValueT]):
    """Beyond `most` values the least recently used one is dropped. `make` makes a new one."""

    def __init__(self, make: Callable[[], ValueT], most: int) -> None:
        self.by_key: OrderedDict[Hashable, ValueT] = OrderedDict()
        """The least recently used first."""
        self._make = make
        self._most = most

    def known(self, keys: Sequence[Hashable]) -> Iterator[ValueT]:
        """The values that there are of these keys, in their order. To look at them does not count as use."""
        get = self.by_key.get
        for key in keys:
            if (value := get(key)) is not None:
                yield value

    def use(self, keys: Sequence[Hashable]) -> list[ValueT]:
        """The values of these keys, made where there are none. The first key is now the most recently used."""
        by_key, values = self.by_key, list[ValueT]()
        for key in reversed(keys):
            value = by_key.get(key)
            if value is None:
                value = by_key[key] = self._make()
            else:
                by_key.move_to_end(key)
            values.append(value)
        while len(by_key) > self._most:
            by_key.popitem(last=False)
        values.reverse()
        return values
