"""Whether a request met its targets, and the share that did over the last minutes. Pure: the clock is passed in.

A request that was refused or lost for lack of capacity has missed its targets. A request that failed because of the
client (a bad request, no key, a client that left before any target had passed) is not counted.

The time to the first token is the time until the token was ready, whether the client asked for a stream or not. For an
answer that the engine sent whole only bounds are known: the first token came after the request was sent to the engine,
and before the end of the answer. Such a request has met a target if it meets it in the worst case, and has missed it if
it misses it in the best case. Otherwise it is not judged.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, log

from uellm.api.attainment_report import AttainmentReport, ClassMeasurement
from uellm.proxying.outcome import COMPLETED, RequestOutcome
from uellm.sidecar.telemetry.access_log import Record

WINDOW_S = 300.0
SLOT_S = 10.0
STEP = 1.05
"""Resolution of the percentiles: 5 %."""
_LOG_STEP = log(STEP)
_LEAST_MS = 0.01
"""Shorter times count as this one."""

CLIENTS_OWN = frozenset(
    (
        *(
            RequestOutcome.REJECTED_BY_ENGINE,
            RequestOutcome.BAD_REQUEST,
            RequestOutcome.UNAUTHORIZED,
            RequestOutcome.FORBIDDEN,
        ),
        *(RequestOutcome.TOO_LARGE, RequestOutcome.CLIENT_SLOW),
    )
)


def missed(record: Record) -> tuple[str, ...] | None:
    """The targets that a request missed: `ttft`, `tpot`, `e2e` or `dropped`. None: it is not judged."""
    if record.targets is None or record.outcome in CLIENTS_OWN:
        return None
    if record.in_background and record.outcome is COMPLETED:
        return None
    late: tuple[str, ...] = ()
    certain = True
    for name, least_s, worst_s, most_s in _bounds(record):
        if least_s > most_s:
            late += (name,)
        certain = certain and worst_s <= most_s
    if record.outcome is COMPLETED:
        return late if late or certain else None
    if record.outcome is RequestOutcome.CLIENT_LEFT:
        return late or None
    return ("dropped",)


_Bound = tuple[str, float, float, float]
"""A target's name, the least and the greatest possible value in seconds (equal if measured), and the target."""


def _bounds(record: Record) -> list[_Bound]:
    targets, took_s = record.targets, record.end_s - record.arrival_s
    assert targets is not None
    bounds: list[_Bound] = []
    if targets.ttft_s is not None:
        bounds.append(("ttft", *_ttft_s(record, took_s), targets.ttft_s))
    if targets.tpot_s is not None:
        bounds.append(("tpot", *_tpot_s(record, took_s), targets.tpot_s))
    if targets.e2e_s is not None:
        bounds.append(("e2e", took_s, took_s, targets.e2e_s))
    return bounds


def _ttft_s(record: Record, took_s: float) -> tuple[float, float]:
    if (ttft_s := record.ttft_s) is not None:
        return ttft_s, ttft_s
    # It was never sent; or its tokens are visible, and none has come.
    sent_s = took_s if record.sent_s is None or not record.blind else record.sent_s
    return sent_s, took_s


def _tpot_s(record: Record, took_s: float) -> tuple[float, float]:
    if (tpot_s := record.tpot_s) is not None:
        return tpot_s, tpot_s
    if record.first_token_s is not None or not record.blind:
        return 0.0, 0.0  # no token came after the first
    further = 1.0 if record.output_tokens is None else record.output_tokens / record.sequences - 1
    return 0.0, (took_s - (record.sent_s or 0.0)) / further if further > 0 else 0.0


@dataclass
class _Slot:
    """Requests of one class that ended within one slot. Times are exponents of `STEP`, in milliseconds."""

    index: int
    requests: int = 0
    met: int = 0
    ttft: dict[int, int] = field(default_factory=dict)
    tpot: dict[int, int] = field(default_factory=dict)


class Attainment:
    """Attainment by class over a sliding window."""

    def __init__(self) -> None:
        self._classes: dict[str, deque[_Slot]] = {}

    def add(self, record: Record, late: tuple[str, ...]) -> None:
        """Count a request that ended now."""
        name = record.slo_class
        slots = self._classes.get(name)
        if slots is None:
            slots = self._classes[name] = deque()
        index = int(record.end_s // SLOT_S)
        if not slots or slots[-1].index < index:
            slots.append(_Slot(index))
            _forget(slots, record.end_s)
        slot = slots[-1]
        slot.requests += 1
        slot.met += not late
        if (ttft_s := record.ttft_s) is not None:
            _count(slot.ttft, ttft_s)
        if (tpot_s := record.tpot_s) is not None:
            _count(slot.tpot, tpot_s)

    def report(self, now_s: float, names: Iterable[str] = ()) -> AttainmentReport:
        """The report to the operator: these classes, and every other class that had requests."""
        known = dict.fromkeys((*names, *self._classes))
        return AttainmentReport(tuple(self._measurement(name, now_s) for name in known), int(WINDOW_S))

    def _measurement(self, name: str, now_s: float) -> ClassMeasurement:
        slots = self._classes.get(name, deque())
        _forget(slots, now_s)
        return ClassMeasurement(
            name,
            sum(slot.requests for slot in slots),
            sum(slot.met for slot in slots),
            _quantile([slot.ttft for slot in slots], 0.99),
            _quantile([slot.tpot for slot in slots], 0.99),
        )


def _count(times: dict[int, int], seconds: float) -> None:
    milliseconds = seconds * 1e3
    power = ceil(log(milliseconds if milliseconds > _LEAST_MS else _LEAST_MS) / _LOG_STEP)
    times[power] = times.get(power, 0) + 1


def _forget(slots: deque[_Slot], now_s: float) -> None:
    while slots and slots[0].index < (now_s - WINDOW_S) // SLOT_S:
        slots.popleft()


def _quantile(parts: list[dict[int, int]], share: float) -> float | None:
    together: Counter[int] = Counter()
    for part in parts:
        together.update(part)
    above = together.total() * (1 - share)
    for power in sorted(together, reverse=True):
        above -= together[power]
        if above < 0:
            return float(f"{STEP**power / 1e3:.3g}")
    return None
