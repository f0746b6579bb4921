"""Values on their way to a worker process: what many of them share is sent once.

A question names every node of the cluster, and the next question names the same nodes. So nodes, what they offer and
the models' architectures are sent when a worker meets them first, and as numbers from then on. Both ends count them
alike. An end that is not sure of the other starts over: the sender opens a new series, and the worker drops the old.
"""

from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

from uellm.hardware import Node
from uellm.models import Architecture
from uellm.planner.request import NodeOffer

SHARED = (Node, NodeOffer, Architecture)
"""Immutable types. Only objects that are kept and used again are worth their entry."""
MOST_SHARED = 8192

_series = itertools.count(1)


class Parcel(NamedTuple):
    """A call for a worker process."""

    series: int
    shared: tuple[tuple[int, bytes], ...]
    """Number and content of the objects that the worker has not met yet, each after those that it refers to."""
    call: bytes


class Sender:
    """The sending end of one worker process. `delivered` or `start_over` must follow every `pack`."""

    def __init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        """Assume that the worker knows nothing."""
        self._series = next(_series)
        # By identity; the object is kept, so that no other can take its identity.
        self._numbers: dict[int, tuple[int, object]] = {}

    def delivered(self) -> None:
        """The worker has answered the last parcel."""
        if len(self._numbers) > MOST_SHARED:
            self.start_over()

    def pack(self, function: Callable[..., Any], *arguments: object) -> Parcel:
        """A call of a module-level function."""
        shared: list[tuple[int, bytes]] = []
        call = self._dump((function, arguments), shared, itself=None)
        return Parcel(self._series, tuple(shared), call)

    def _dump(self, value: object, shared: list[tuple[int, bytes]], *, itself: object) -> bytes:
        buffer = io.BytesIO()
        _Pickler(buffer, lambda each: None if each is itself else self._number(each, shared)).dump(value)
        return buffer.getvalue()

    def _number(self, value: object, shared: list[tuple[int, bytes]]) -> int:
        known = self._numbers.get(id(value))
        if known is None:
            content = self._dump(value, shared, itself=value)
            known = self._numbers[id(value)] = len(self._numbers), value
            shared.append((known[0], content))
        return known[0]


class _Pickler(pickle.Pickler):
    """Writes a number in place of a shared object; `number_of` gives None for an object that is to be written."""

    def __init__(self, buffer: io.BytesIO, number_of: Callable[[object], int | None]) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._number_of = number_of

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, SHARED) and (number := self._number_of(value)) is not None:
            return _shared, (number,)
        return NotImplemented


class _Store:
    """What a worker has met in the series at hand."""

    def __init__(self) -> None:
        self.series = 0
        self.objects: dict[int, object] = {}


_store = _Store()


def run(parcel: Parcel) -> Any:
    """Run in the worker process: do the call, and return its result."""
    if _store.series != parcel.series:
        _store.series, _store.objects = parcel.series, {}
    for number, content in parcel.shared:
        _store.objects[number] = pickle.loads(content)
    function, arguments = pickle.loads(parcel.call)
    return function(*arguments)


def _shared(number: int) -> object:
    return _store.objects[number]
