"""The last so many values of a stream, with their quantiles."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence

SIZE = 1024
"""Measured on traces: from 256 to 1,024 values the order that medians give clients gets better, from there it hardly
does; P90 is as steady with either."""

MOST_WINDOWS = 400
"""By kind of window. A full one takes 40 KiB."""


class Window:
    """A sliding window. Adding costs a shift of at most `SIZE` pointers; a quantile costs a look."""

    __slots__ = ("_arrivals", "_sorted")

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._arrivals = deque(values, maxlen=SIZE)
        self._sorted = sorted(self._arrivals)

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[float]:
        return iter(self._arrivals)

    def add(self, value: float) -> None:
        """Take in a value; the oldest leaves where the window is full."""
        if len(self._arrivals) == SIZE:
            del self._sorted[bisect_left(self._sorted, self._arrivals[0])]
        self._arrivals.append(value)
        insort(self._sorted, value)

    def quantile(self, level: float) -> float:
        """The smallest value that a share `level` of the values, and of the next one, does not exceed.

        The rank is that of split conformal prediction, ceil((n + 1) * level): for exchangeable values the next one
        stays at or below it with at least that probability. Raises IndexError where the window is empty.
        """
        count = len(self._sorted)
        rank = -int(-(count + 1) * level // 1)
        return self._sorted[min(max(rank, 1), count) - 1]


class SlidingWindows:
    """Windows by key. Beyond `MOST_WINDOWS` of them the one that was used least lately goes."""

    def __init__(self) -> None:
        self.by_key: OrderedDict[Hashable, Window] = OrderedDict()

    def first(self, keys: Sequence[Hashable], at_least: int) -> Window | None:
        """The window of the first key that has so many values."""
        for key in keys:
            window = self.by_key.get(key)
            if window is not None and len(window) >= at_least:
                return window
        return None

    def add(self, keys: Sequence[Hashable], value: float) -> None:
        """Take a value into the windows of all these keys, the last of which is used most."""
        for key in keys:
            window = self.by_key.get(key)
            if window is None:
                window = self.by_key[key] = Window()
            else:
                self.by_key.move_to_end(key)
            window.add(value)
        while len(self.by_key) > MOST_WINDOWS:
            self.by_key.popitem(last=False)
