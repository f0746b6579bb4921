"""SLO attainment as the pods' sidecars measured it: parsed, added up over pods, compared with the target. Pure.

A sidecar reports the last few minutes: {"windowSeconds": 300, "classes": [{"name": "chat", "requests": 120,
"met": 118, "p99TtftSeconds": 0.41, "p99TpotSeconds": 0.03}]}.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from uellm.api import LLMService
from uellm.api.scalars import DNS_LABEL, share
from uellm.reconcile.conditions import Condition

TYPE = "SLOMet"
MAX_CLASSES = 16
_LARGEST = 2**53


class ClassMeasurement(NamedTuple):
    """How the requests of one class fared over the last minutes."""

    name: str
    requests: int
    met: int
    """Requests that met every target."""
    p99_ttft_s: float | None
    p99_tpot_s: float | None

    def __add__(self, other: tuple[Any, ...]) -> ClassMeasurement:
        """Both together. Percentiles cannot be added: the longer is taken."""
        more = ClassMeasurement(*other)
        return ClassMeasurement(
            self.name,
            self.requests + more.requests,
            self.met + more.met,
            _longer(self.p99_ttft_s, more.p99_ttft_s),
            _longer(self.p99_tpot_s, more.p99_tpot_s),
        )

    def to_dict(self) -> dict[str, Any]:
        """An entry of `status.slo`, rounded so that small changes do not show."""
        entry: dict[str, Any] = {"name": self.name, "requests": _two_digits(self.requests)}
        if self.requests:
            entry["attainment"] = percent(self.met, self.requests)
        for name, seconds in (("p99TtftMilliseconds", self.p99_ttft_s), ("p99TpotMilliseconds", self.p99_tpot_s)):
            if seconds is not None:
                entry[name] = _two_digits(round(seconds * 1e3))
        return entry


def read_measurements(document: Mapping[str, Any]) -> tuple[ClassMeasurement, ...]:
    """Parse a sidecar's report. Pods are not trusted: malformed entries are skipped."""
    classes = document.get("classes")
    entries = classes[:MAX_CLASSES] if isinstance(classes, list) else []
    return tuple(measured for entry in entries if isinstance(entry, Mapping) and (measured := _read(entry)) is not None)


def together(pods: Iterable[Sequence[ClassMeasurement]], names: Sequence[str]) -> tuple[ClassMeasurement, ...]:
    """The measurements of these classes over all pods, in the order of `names`."""
    sums: dict[str, ClassMeasurement] = {}
    for measured in (each for pod in pods for each in pod):
        sums[measured.name] = sums[measured.name] + measured if measured.name in sums else measured
    return tuple(sums[name] for name in names if name in sums)


def slo_met(measured: Sequence[ClassMeasurement], service: LLMService) -> Condition | None:
    """The condition SLOMet: the share of all requests that met their targets; None where there are no targets."""
    if not service.spec.slo.classes:
        return None
    requests, met = sum(each.requests for each in measured), sum(each.met for each in measured)
    if not requests:
        return Condition(TYPE, "Unknown", "NoTraffic", "no request ended in the last minutes")
    wanted = service.spec.slo.attainment
    holds = met >= share(wanted) * requests
    by_class = ", ".join(f"{each.name} {percent(each.met, each.requests)}" for each in measured if each.requests)
    # Without the number of requests, which changes every minute.
    message = (
        f"{percent(met, requests)} of the last minutes' requests met their targets ({by_class}); asked for: {wanted}"
    )
    return Condition(TYPE, str(holds), "TargetsMet" if holds else "TargetsMissed", message)


def percent(part: int, whole: int) -> str:
    """A share to a tenth of a percent, rounded down: 100% means all."""
    tenths = 1000 * part // whole
    return f"{tenths // 10}.{tenths % 10}%" if tenths < 1000 else "100%"


def _read(entry: Mapping[str, Any]) -> ClassMeasurement | None:
    name, requests, met = entry.get("name"), _count(entry.get("requests")), _count(entry.get("met"))
    if not isinstance(name, str) or len(name) > 63 or not re.search(DNS_LABEL, name):
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


def _longer(one: float | None, other: float | None) -> float | None:
    return max((each for each in (one, other) if each is not None), default=None)


def _two_digits(number: int) -> int:
    return round(number, 2 - len(str(number))) if number >= 100 else number
