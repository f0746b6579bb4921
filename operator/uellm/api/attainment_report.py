"""GET /uellm/slo of a sidecar: how the requests of the last minutes fared, class by class, and the engine's steps.

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
from uellm.step_time import LEAST_FACTOR, MOST_FACTOR, StepFactors, StepTime

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


class StepMeasurement(NamedTuple):
    """The time of the engine's steps beside what was predicted."""

    observed: int
    """Steps that were measured."""
    factors: StepFactors
    """By which they differ from the prediction without any correction: `stepSeconds` alone."""
    mean_s: float
    """Mean time of the last steps."""
    expected_s: float
    """What was predicted of the same steps: `stepSeconds` with the factors that the pod was started with."""

    def to_dict(self) -> dict[str, Any]:
        """`steps`, to four digits."""
        return {
            "observed": self.observed,
            "prefillFactor": _digits(self.factors.prefill),
            "decodeFactor": _digits(self.factors.decode),
            "meanSeconds": _digits(self.mean_s),
            "expectedSeconds": _digits(self.expected_s),
        }


class LoadMeasurement(NamedTuple):
    """The load of one replica. The first four, `prompts`, `answers` and `passed` grow from the sidecar's start on."""

    ended: int
    """Requests, refused ones included."""
    missed: int
    """Requests that missed a target."""
    prompt_tokens: int
    """Of `prompts`; estimated where the engine did not count them."""
    output_tokens: int
    """Of `answers`."""
    running: int
    """Requests in the engine now."""
    queued: int
    """Requests that wait now."""
    cached_share: float = 0.0
    """Of the prompt tokens of late, the share that was in the prefix cache, 0 to 1."""
    step: StepTime | None = None
    """The time of a step as it was measured; None: none was."""
    passing: int = 0
    """Requests of routes that are not scheduled, such as realtime sessions, in the engine now; not those that monitors
    poll."""
    prompts: int | None = None
    """Requests that ended whose prompts were read. None: a sidecar of an earlier release, which tells tokens of what it
    served alone, for all requests that ended."""
    answers: int | None = None
    """Requests that ended with an answer as long as it was to be; not those that were refused or lost."""
    passed: int = 0
    """Requests of routes that are not scheduled that ended, without those that the engine refused and those that
    monitors poll. No work is known of them, but somebody used the service."""

    def to_dict(self) -> dict[str, Any]:
        """`load`."""
        return {
            "ended": self.ended,
            "missed": self.missed,
            "promptTokens": self.prompt_tokens,
            "outputTokens": self.output_tokens,
            "running": self.running,
            "queued": self.queued,
            "cachedShare": _digits(self.cached_share),
            "stepSeconds": None if self.step is None else self.step.to_dict(),
            "passing": self.passing,
            "prompts": self.prompts,
            "answers": self.answers,
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True)
class AttainmentReport:
    """The whole report."""

    classes: tuple[ClassMeasurement, ...]
    window_s: int = 0
    """The time that it covers."""
    steps: StepMeasurement | None = None
    """None: no step was measured, or nothing was predicted of them."""
    load: LoadMeasurement | None = None
    """None: a sidecar of a release that does not report it."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        classes = [each.to_dict() for each in self.classes]
        report = {"version": VERSION, "windowSeconds": self.window_s, "classes": classes}
        parts = (("steps", self.steps), ("load", self.load))
        return {**report, **{name: part.to_dict() for name, part in parts if part is not None}}

    @classmethod
    def from_dict(cls, document: Any) -> AttainmentReport:
        """The inverse of `to_dict`. Raises UnreadableDocument for another version."""
        with reading(_NAME, document) as data:
            classes = data.get("classes")
            entries = classes[:_MOST_CLASSES] if isinstance(classes, list) else []
            measured = (_measurement(entry) for entry in entries if isinstance(entry, Mapping))
            known = tuple(each for each in measured if each is not None)
            return cls(
                known, _count(data.get("windowSeconds")) or 0, _steps(data.get("steps")), _load(data.get("load"))
            )


def _measurement(entry: Mapping[str, Any]) -> ClassMeasurement | None:
    name, requests, met = entry.get("name"), _count(entry.get("requests")), _count(entry.get("met"))
    if not isinstance(name, str) or len(name) > _LONGEST_CLASS_NAME or not re.search(DNS_LABEL, name):
        return None
    if requests is None or met is None or met > requests:
        return None
    return ClassMeasurement(
        name, requests, met, _seconds(entry.get("p99TtftSeconds")), _seconds(entry.get("p99TpotSeconds"))
    )


def _steps(entry: Any) -> StepMeasurement | None:
    if not isinstance(entry, Mapping):
        return None
    observed = _count(entry.get("observed"))
    prefill, decode = _factor(entry.get("prefillFactor")), _factor(entry.get("decodeFactor"))
    mean_s, expected_s = _seconds(entry.get("meanSeconds")), _seconds(entry.get("expectedSeconds"))
    if not observed or prefill is None or decode is None or not mean_s or not expected_s:
        return None
    return StepMeasurement(observed, StepFactors(prefill, decode), mean_s, expected_s)


def _load(entry: Any) -> LoadMeasurement | None:
    if not isinstance(entry, Mapping):
        return None
    names = ("ended", "missed", "promptTokens", "outputTokens", "running", "queued")
    counts = [count for name in names if (count := _count(entry.get(name))) is not None]
    share = _seconds(entry.get("cachedShare"))
    if len(counts) < len(names) or share is None or share > 1.0:
        return None
    ended, missed, prompts, outputs, running, queued = counts
    step = StepTime.if_sane(entry.get("stepSeconds"))
    # A sidecar of an earlier release does not tell the last ones.
    passing = _count(entry.get("passing")) or 0
    known = _count(entry.get("prompts")), _count(entry.get("answers"))
    passed = _count(entry.get("passed")) or 0
    return LoadMeasurement(ended, missed, prompts, outputs, running, queued, share, step, passing, *known, passed)


def _factor(value: Any) -> float | None:
    seconds = _seconds(value)
    return seconds if seconds is not None and LEAST_FACTOR <= seconds <= MOST_FACTOR else None


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST else None


def _seconds(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good and 0 <= value <= _LARGEST / 1e3 else None
