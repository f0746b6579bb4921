"""What is left to measure on the devices that a container has. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import NamedTuple

from uellm.measuring.document import MeasurementDocument, MeasuringTerms, On

PRODUCTS = ("bf16", "fp16", "fp8")
DEVICE_TASKS = (*PRODUCTS, "memory", "host", "launch")
LINK, ALL_REDUCE = "link", "all-reduce"
GROUP_SIZES = (2, 4, 8)
"""Of tensor parallelism."""


class MeasuringTask(NamedTuple):
    """One micro-benchmark, and the devices that it needs."""

    what: str
    devices: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.what} of {', '.join(self.devices)}"


def still_valid(
    document: MeasurementDocument, on: On, request: str, terms: Mapping[str, MeasuringTerms]
) -> MeasurementDocument:
    """What of an earlier document still holds for the devices that are there, by their present terms.

    What is known of other devices is kept: another pod has them now. With a new request nothing holds.
    """
    if document.on != on:
        return MeasurementDocument(on=on, request=request)
    if document.request != request:
        kept = document.without(frozenset(terms))
        return replace(kept, request=request, finished="", failures=())
    changed = frozenset(
        uuid for uuid, now in terms.items() if uuid in document.devices and not document.devices[uuid].terms.agree(now)
    )
    return replace(document.without(changed), finished="", failures=())


def tasks_left(document: MeasurementDocument, uuids: Sequence[str]) -> Iterator[MeasuringTask]:
    """In the order in which they are carried out: what plans need most comes first."""
    for uuid in uuids:
        done = document.devices[uuid].done if uuid in document.devices else ()
        yield from (MeasuringTask(what, (uuid,)) for what in DEVICE_TASKS if what not in done)
    for pair in permutations(uuids, 2):
        if pair not in document.links:
            yield MeasuringTask(LINK, pair)
    for size in GROUP_SIZES:
        group = tuple(uuids[:size])
        if len(group) == size and group not in document.groups:
            yield MeasuringTask(ALL_REDUCE, group)
