"""GET /uellm/slo of a sidecar: how the requests of the last minutes fared, class by class.

Written by the sidecar, read by the controller. It comes out of a pod, so what is malformed is skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from uellm.api.scalars import DNS_LABEL
from uellm.documents import VERSION, reading

_NAME = "the attainment report"
_MOST_CLASSES = 16
_LONGEST_CLASS_NAME = 63
_LARGEST = 2**53


class ClassMeasurement(NamedTuple):
    """How the requests of one class fared."""

    name: str
    requests: int
    met: int
    """Requests that met every target."""
    p99_ttft_s: float | None = None
    p99_tpot_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """`classes[]`; times that are not known are left out."""
        entry: dict[str, Any] = {"name": self.name, "requests": self.requests, "met": self.met}
        for field, seconds in (("p99TtftSeconds", self.p99_ttft_s), ("p99TpotSeconds", self.p99_tpot_s)):
            if seconds is not None:
                entry[field] = seconds
        return entry


@dataclass(frozen=True, slots=True)
class AttainmentReport:
    """The whole report."""

    classes: tuple[ClassMeasurement, ...]
    window_s: int = 0
    """The time that it covers."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        classes = [each.to_dict() for each in self.classes]
        return {"version": VERSION, "windowSeconds": self.window_s, "classes": classes}

    @classmethod
    def from_dict(cls, document: Any) -> AttainmentReport:
        """The inverse of `to_dict`. Raises UnreadableDocument for another version."""
        with reading(_NAME, document) as data:
            classes = data.get("classes")
            entries = classes[:_MOST_CLASSES] if isinstance(classes, list) else []
            measured = (_measurement(entry) for entry in entries if isinstance(entry, Mapping))
            return cls(tuple(each for each in measured if each is not None), _count(data.get("windowSeconds")) or 0)


def _measurement(entry: Mapping[str, Any]) -> ClassMeasurement | None:
    name, requests, met = entry.get("name"), _count(entry.get("requests")), _count(entry.get("met"))
    if not isinstance(name, str) or len(name) > _LONGEST_CLASS_NAME or not re.search(DNS_LABEL, name):
        return None
    if requests is None or met is None or met > requests:
        return None
    return ClassMeasurement(
        name, requests, met, _seconds(entry.get("p99TtftSeconds")), _seconds(entry.get("p99TpotSeconds"))
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST else None


def _seconds(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good and 0 <= value <= _LARGEST / 1e3 else None
