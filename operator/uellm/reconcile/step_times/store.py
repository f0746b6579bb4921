"""The corrections of a cluster: measured step times by model, GPU and shape, in one ConfigMap. Pure; no clock.

A person may edit or delete the ConfigMap. What cannot be read in it is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from uellm.documents import VERSION, UnreadableDocument, parsed, reading
from uellm.reconcile.times import moment, timestamp
from uellm.step_basis import Correction, StepBasis, number
from uellm.step_time import LEAST_FACTOR, MOST_FACTOR, StepFactors

CONFIGMAP_NAME = "uellm-measured-steps"
FILE = "steps.json"
MOST_ENTRIES = 128
"""With more, those that were measured the longest ago are dropped."""
NEWS = 0.05
"""A factor that differs by less from the one that is kept is no news."""

_MOST_STEPS = 2**53
_LONGEST_FILE = 262_144


class Entry(NamedTuple):
    """A correction, and when it was measured."""

    correction: Correction
    measured_at: datetime

    def to_dict(self) -> dict[str, Any]:
        """An element of `entries`."""
        basis, factors, steps = self.correction
        return {
            **basis.to_dict(),
            "prefillFactor": factors.prefill,
            "decodeFactor": factors.decode,
            "steps": steps,
            "measuredAt": timestamp(self.measured_at),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Entry:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError."""
        prefill, decode = (number(data[name], LEAST_FACTOR, MOST_FACTOR) for name in ("prefillFactor", "decodeFactor"))
        steps = int(number(data["steps"], 1, _MOST_STEPS))
        correction = Correction(StepBasis.from_dict(data), StepFactors(prefill, decode), steps)
        return cls(correction, moment(data["measuredAt"]))


class StepStore:
    """What is kept, and what is new and not written yet."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Any, ...], Entry] = {}
        self._new: dict[tuple[Any, ...], Entry] = {}

    def corrections(self) -> tuple[Correction, ...]:
        """All corrections, in the order of what they are about."""
        return tuple(sorted(each.correction for each in (self._entries | self._new).values()))

    def put(self, correction: Correction, now: datetime) -> None:
        """Keep a correction where it is news."""
        place = correction.basis.place
        known = self._new.get(place) or self._entries.get(place)
        if known is None or _is_news(correction, known.correction):
            self._new[place] = Entry(_rounded(correction), now)

    @property
    def is_written(self) -> bool:
        """Whether nothing is new."""
        return not self._new

    def adopt(self, text: str) -> None:
        """Take over what the ConfigMap holds; it may have been edited."""
        self._entries = {each.correction.basis.place: each for each in read_entries(text)}

    def text(self) -> str:
        """The content to write: what is kept and what is new, the newest MOST_ENTRIES of both."""
        newest = sorted((self._entries | self._new).values(), key=lambda each: each.measured_at, reverse=True)
        entries = sorted(newest[:MOST_ENTRIES], key=lambda each: each.correction)
        return json.dumps({"version": VERSION, "entries": [each.to_dict() for each in entries]}, indent=1)

    def written(self, text: str) -> None:
        """The content was written."""
        self.adopt(text)
        for place, entry in list(self._new.items()):
            kept = self._entries.get(place)
            # What came while it was being written is written the next time.
            if kept is None or kept.correction == entry.correction:
                del self._new[place]


def read_entries(text: str) -> list[Entry]:
    """The entries that can be read."""
    try:
        with reading(FILE, parsed(FILE, text[:_LONGEST_FILE])) as document:
            entries = document.get("entries")
            found = entries[:MOST_ENTRIES] if isinstance(entries, list) else []
    except UnreadableDocument:
        return []
    return list(_readable(found))


def _readable(entries: list[Any]) -> Iterable[Entry]:
    for each in entries:
        try:
            yield Entry.from_dict(each)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            continue


def _is_news(new: Correction, known: Correction) -> bool:
    if new.basis != known.basis or new.steps >= 4 * known.steps:
        return True
    return any(abs(a / b - 1.0) > NEWS for a, b in zip(new.factors, known.factors, strict=True))


def _rounded(correction: Correction) -> Correction:
    """Factors to two digits after the point: pods' files, which hold them, stay readable."""
    factors = StepFactors(*(round(factor, 2) for factor in correction.factors)).bounded()
    return correction._replace(factors=factors)
