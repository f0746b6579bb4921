"""SLO attainment as the pods' sidecars measured it: added up over pods, compared with the target. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uellm.api import LLMService
from uellm.api.attainment_report import AttainmentReport, ClassMeasurement
from uellm.api.scalars import share
from uellm.documents import UnreadableDocument
from uellm.reconcile.conditions import Condition

TYPE = "SLOMet"


def read_report(document: Mapping[str, Any]) -> AttainmentReport:
    """A sidecar's report; empty where it is of another version."""
    try:
        return AttainmentReport.from_dict(document)
    except UnreadableDocument:
        return AttainmentReport(())


def read_measurements(document: Mapping[str, Any]) -> tuple[ClassMeasurement, ...]:
    """The measurements in a sidecar's report; none where it is of another version."""
    return read_report(document).classes


def together(pods: Iterable[Sequence[ClassMeasurement]], names: Sequence[str]) -> tuple[ClassMeasurement, ...]:
    """The measurements of these classes over all pods, in the order of `names`."""
    sums: dict[str, ClassMeasurement] = {}
    for measured in (each for pod in pods for each in pod):
        sums[measured.name] = _added(sums[measured.name], measured) if measured.name in sums else measured
    return tuple(sums[name] for name in names if name in sums)


def status_entry(measured: ClassMeasurement) -> dict[str, Any]:
    """An entry of `status.slo`, rounded so that small changes do not show."""
    entry: dict[str, Any] = {"name": measured.name, "requests": _two_digits(measured.requests)}
    if measured.requests:
        entry["attainment"] = percent(measured.met, measured.requests)
    times = (("p99TtftMilliseconds", measured.p99_ttft_s), ("p99TpotMilliseconds", measured.p99_tpot_s))
    return entry | {name: _two_digits(round(seconds * 1e3)) for name, seconds in times if seconds is not None}


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


def _added(one: ClassMeasurement, other: ClassMeasurement) -> ClassMeasurement:
    """Both together. Percentiles cannot be added: the longer is taken."""
    return ClassMeasurement(
        one.name,
        one.requests + other.requests,
        one.met + other.met,
        _longer(one.p99_ttft_s, other.p99_ttft_s),
        _longer(one.p99_tpot_s, other.p99_tpot_s),
    )


def _longer(one: float | None, other: float | None) -> float | None:
    return max((each for each in (one, other) if each is not None), default=None)


def _two_digits(number: int) -> int:
    return round(number, 2 - len(str(number))) if number >= 100 else number
