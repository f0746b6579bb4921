"""Counters, gauges and histograms in Prometheus' text format, with a bound on the series of a metric.

format: https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4)
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MAX_SERIES = 1024
"""Series of one metric at most; further label combinations are counted under the label value `other`, except for labels
of few values."""

SECONDS_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)

FINE_SECONDS_BUCKETS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05),
    *(0.06, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5),
)
"""Of times between tokens."""

DECISION_SECONDS_BUCKETS = (1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2)
"""Of the scheduler's decisions."""

Labels = tuple[str, ...]


class Metric(Protocol):
    """A metric that can be scraped."""

    def lines(self) -> Iterator[str]:
        """Its lines, HELP and TYPE included."""


class Counter:
    """A number that only grows, by labels."""

    def __init__(self, name: str, text: str, *labels: str, few: int = 0) -> None:
        """`few`: so many of the last labels have few values, and keep them beyond the bound on series."""
        self.name, self.text, self.labels = name, text, labels
        self._few = few
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, *values: str, by: float = 1.0) -> None:
        """Count one more, or `by` more, under these label values."""
        try:
            self._values[values] += by
        except KeyError:
            values = bounded(values, self._values, self._few)
            self._values[values] = self._values.get(values, 0.0) + by

    def forget(self, *first: str) -> None:
        """Drop the series whose labels begin with these values."""
        for key in _beginning(self._values, first):
            del self._values[key]

    def value(self, *values: str) -> float:
        """What was counted under these label values."""
        return self._values.get(values, 0.0)

    def lines(self) -> Iterator[str]:
        """Its lines, HELP and TYPE included."""
        yield from _head(self.name, self.text, "counter")
        for key, value in self._values.items():
            yield _sample(self.name, self.labels, key, value)


class Gauge:
    """A number, or one per label value, that is read at every scrape."""

    def __init__(self, name: str, text: str, read: Callable[[], float | Mapping[Labels, float]], *labels: str) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._read = read

    def lines(self) -> Iterator[str]:
        """Its lines, HELP and TYPE included."""
        found = self._read()
        values = found if isinstance(found, Mapping) else {(): found}
        yield from _head(self.name, self.text, "gauge")
        for key, value in values.items():
            yield _sample(self.name, self.labels, key, value)


class NamedFigures:
    """Numbers without labels whose names are read at every scrape as well; `texts` has the HELP text by name.

    Those in `counters` only grow, and their names end in `_total`; the others are gauges.
    """

    def __init__(
        self,
        prefix: str,
        texts: Mapping[str, str],
        counters: Collection[str],
        read: Callable[[], Mapping[str, float | None]],
    ) -> None:
        self.prefix, self.texts, self._counters = prefix, texts, counters
        self._read = read

    def lines(self) -> Iterator[str]:
        """Their lines, HELP and TYPE included."""
        for name, value in self._read().items():
            if value is not None:
                counts = name in self._counters
                full = f"{self.prefix}{name}_total" if counts else f"{self.prefix}{name}"
                yield from _head(full, self.texts.get(name, ""), "counter" if counts else "gauge")
                yield _sample(full, (), (), value)


class _Series:
    """What was observed under one combination of label values."""

    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        """By bucket; the last one has what is above every bound."""
        self.total = 0.0


class Histogram:
    """Durations in seconds, or ratios, by labels."""

    def __init__(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS_BUCKETS) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._bounds = buckets
        self._series: dict[Labels, _Series] = {}

    def observe(self, value: float, *values: str) -> None:
        """Count one value under these label values."""
        try:
            series = self._series[values]
        except KeyError:
            series = self._series.setdefault(bounded(values, self._series), _Series(len(self._bounds) + 1))
        series.counts[bisect_left(self._bounds, value)] += 1
        series.total += value

    def forget(self, *first: str) -> None:
        """Drop the series whose labels begin with these values."""
        for key in _beginning(self._series, first):
            del self._series[key]

    def lines(self) -> Iterator[str]:
        """Its lines, HELP and TYPE included."""
        yield from _head(self.name, self.text, "histogram")
        bounds = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        for key, series in self._series.items():
            number = 0
            for bound, count in zip(bounds, series.counts, strict=True):
                number += count
                yield _sample(f"{self.name}_bucket", (*self.labels, "le"), (*key, bound), number)
            yield _sample(f"{self.name}_sum", self.labels, key, series.total)
            yield _sample(f"{self.name}_count", self.labels, key, number)


def bounded(values: Labels, known: Mapping[Labels, object], few: int = 0) -> Labels:
    """The label values, or `other` for each but the last `few` of them if the metric has reached `MAX_SERIES`."""
    if values in known or len(known) < MAX_SERIES:
        return values
    others = len(values) - few
    return ("other",) * others + values[others:]


def _beginning(known: Mapping[Labels, object], first: Labels) -> list[Labels]:
    return [key for key in known if key[: len(first)] == first]


def exposition(metrics: list[Metric]) -> str:
    """All metrics in one text."""
    return "".join(f"{line}\n" for metric in metrics for line in metric.lines())


_WAITING = (
    re.compile(r"^(vllm:num_requests_waiting(?:\{.*\})? )([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)$", re.MULTILINE),
    re.compile(
        r'^(vllm:num_requests_waiting_by_reason\{.*reason="capacity".*\} )([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)$',
        re.MULTILINE,
    ),
)
"""Waiting requests, and the same by reason: newer versions expose both, and the reasons add up to the total."""


def with_waiting(engine_metrics: str, waiting: int) -> str:
    """The engine's metrics with our queue added to `vllm:num_requests_waiting`.

    A router that goes by this metric would otherwise overload this replica. An engine with several ranks has one line
    per rank; the first gets the whole queue, because routers add them up.
    """

    def more(line: re.Match[str]) -> str:
        return f"{line[1]}{_number(float(line[2]) + waiting)}"

    for pattern in _WAITING:
        engine_metrics = pattern.sub(more, engine_metrics, count=1)
    return engine_metrics


_KV_USED = re.compile(r"^(# HELP |# TYPE |)vllm:kv_cache_usage_perc(?=[ {]).*\n?", re.MULTILINE)
_OLDER_KV_USED = "vllm:gpu_cache_usage_perc"


def with_older_names(engine_metrics: str) -> str:
    """The engine's metrics with the KV cache's use under its older name as well.

    The endpoint picker of the Gateway API inference extension 1.0 reads that name, and an engine of 2025 or later no
    longer has it.
    """
    if f"\n{_OLDER_KV_USED}" in f"\n{engine_metrics}":
        return engine_metrics
    lines = [line[0].rstrip("\n") for line in _KV_USED.finditer(engine_metrics)]
    older = "".join(f"{line.replace('vllm:kv_cache_usage_perc', _OLDER_KV_USED, 1)}\n" for line in lines)
    return f"{engine_metrics}\n{older}" if older and not engine_metrics.endswith("\n") else engine_metrics + older


def _head(name: str, text: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _sample(name: str, labels: Labels, values: Labels, value: float) -> str:
    pairs = ",".join(f'{label}="{_escape(text)}"' for label, text in zip(labels, values, strict=True))
    return f"{name}{{{pairs}}} {_number(value)}" if pairs else f"{name} {_number(value)}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return f"{value:.10g}"
