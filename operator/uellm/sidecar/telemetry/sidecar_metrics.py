"""The sidecar's own metrics: each request is counted once when it ends; gauges are read at every scrape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from uellm.proxying.faults import Faults
from uellm.proxying.log_writer import DroppedLines, log_line
from uellm.proxying.metrics import (
    FINE_SECONDS_BUCKETS,
    Counter,
    Gauge,
    Histogram,
    Labels,
    Metric,
    NamedFigures,
)
from uellm.proxying.outcome import COMPLETED, RequestOutcome
from uellm.sidecar.telemetry.access_log import ACCESS_LOG, Record
from uellm.sidecar.telemetry.attainment import CLIENTS_OWN, Attainment, missed
from uellm.sidecar.telemetry.help_texts import COUNTERS

_RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)


@dataclass
class Totals:
    """Sums over all requests with a class that ended since the start."""

    ended: int = 0
    missed: int = 0
    """Requests that missed a target."""
    prompts: int = 0
    """Requests whose prompts were read: refused ones, too, for they are load."""
    prompt_tokens: int = 0
    answers: int = 0
    """Requests whose answers came to their end, were it an early one by the client's wish or fault."""
    output_tokens: int = 0
    """Of these."""

    def add(self, record: Record) -> None:
        """A request ended. What the engine does not do for it through the client's own fault is no work."""
        fault = record.outcome in CLIENTS_OWN
        prompt = record.estimated_prompt_tokens if record.prompt_tokens is None else record.prompt_tokens
        self.ended += 1
        if fault or prompt is not None:
            self.prompts += 1
            self.prompt_tokens += 0 if fault else prompt or 0
        if fault or record.outcome is COMPLETED or _was_stopped(record):
            self.answers += 1
            self.output_tokens += record.output_tokens or 0


def _was_stopped(record: Record) -> bool:
    """Whether the client wanted no more of an answer under way. Of one that left the queue the length is not known."""
    return record.outcome is RequestOutcome.CLIENT_LEFT and record.queue_s is not None


class SidecarMetrics:
    """The sidecar's own metrics, and the attainment of the last minutes."""

    def __init__(self) -> None:
        self.attainment = Attainment()
        self.totals = Totals()
        self.faults = Faults()
        self.requests = Counter(
            "uellm_requests_total", "Requests that ended, by their one outcome.", "class", "route", "outcome"
        )
        self.adapters = Counter(
            "uellm_adapter_requests_total", "Requests for LoRA adapters that ended.", "adapter", "outcome"
        )
        self.judged = Counter("uellm_slo_requests_total", "Requests that are judged by their targets.", "class")
        self.met = Counter("uellm_slo_met_total", "Requests that met every target: the goodput in requests.", "class")
        self.missed = Counter(
            "uellm_slo_missed_total", "Targets that were missed: ttft, tpot, e2e, dropped.", "class", "target"
        )
        self.tokens = Counter("uellm_output_tokens_total", "Tokens generated, as the engine counts them.", "class")
        self.good_tokens = Counter(
            "uellm_good_output_tokens_total",
            "Tokens of requests that met every target: the goodput in tokens.",
            "class",
        )
        self.prompt_tokens = Counter("uellm_prompt_tokens_total", "Tokens of prompts, as the engine counts.", "class")
        self.queue = Histogram("uellm_queue_seconds", "Time from arrival until sent to the engine.", "class")
        self.ttft = Histogram("uellm_ttft_seconds", "Time from arrival to the first token.", "class")
        self.tpot = Histogram(
            "uellm_tpot_seconds",
            "Mean time for each further token of an answer.",
            "class",
            buckets=FINE_SECONDS_BUCKETS,
        )
        self.end_to_end = Histogram("uellm_e2e_seconds", "Time from arrival to the end of completed requests.", "class")
        self.prediction = Histogram(
            "uellm_output_length_ratio",
            "Tokens generated over the median that was predicted; 1 is exact.",
            "class",
            buckets=_RATIO_BUCKETS,
        )
        self.unjudged = Counter(
            "uellm_slo_unjudged_total",
            "Whole answers that the engine gave at once, which may have met every target or not.",
            "class",
        )
        self.reloads = Counter("uellm_config_reloads_total", "Changes of the configuration file.", "result")
        self.metrics: list[Metric] = [
            *(
                self.requests,
                self.adapters,
                self.judged,
                self.met,
                self.missed,
                self.tokens,
                self.good_tokens,
                self.prompt_tokens,
            ),
            *(self.queue, self.ttft, self.tpot, self.end_to_end, self.prediction, self.reloads),
            *(self.unjudged, self.faults.counter, DroppedLines("uellm_log_lines_dropped_total", ACCESS_LOG)),
        ]

    def gauge(self, name: str, text: str, read: Callable[[], float | Mapping[Labels, float]], *labels: str) -> None:
        """Add a gauge that is read at every scrape."""
        self.metrics.append(Gauge(name, text, read, *labels))

    def figures(self, prefix: str, texts: Mapping[str, str], read: Callable[[], Mapping[str, float | None]]) -> None:
        """Add figures whose names are read at every scrape as well; None is left out."""
        self.metrics.append(NamedFigures(prefix, texts, COUNTERS, read))

    def count(self, record: Record) -> None:
        """Count a request that ended, and log it. Raises nothing: its client has its answer."""
        name, outcome = record.slo_class, record.outcome  # the outcome is a string; its `value` would be two calls
        # `try`, because a guard costs three calls, and every request has all of these.
        try:
            self.requests.add(name, record.route, outcome)
            if record.adapter:
                self.adapters.add(record.adapter, outcome)
        except Exception as error:
            self.faults.count("metrics", error, record.id)
        if record.targets is not None:
            try:
                self._times(record, name)
                self.totals.add(record)
            except Exception as error:
                self.faults.count("metrics", error, record.id)
            try:
                self._judge(record, name)
            except Exception as error:
                self.faults.count("attainment", error, record.id)
        try:
            log_line(ACCESS_LOG, record.to_json)
        except Exception as error:
            self.faults.count("log", error, record.id)

    def _times(self, record: Record, name: str) -> None:
        if record.queue_s is not None:
            self.queue.observe(record.queue_s, name)
        if (ttft_s := record.ttft_s) is not None:
            self.ttft.observe(ttft_s, name)
        if (tpot_s := record.tpot_s) is not None:
            self.tpot.observe(tpot_s, name)
        if record.outcome is COMPLETED:
            self.end_to_end.observe(record.end_s - record.arrival_s, name)
        if record.prompt_tokens is not None:
            self.prompt_tokens.add(name, by=record.prompt_tokens)
        if record.output_tokens is not None:
            self.tokens.add(name, by=record.output_tokens)
            if record.predicted_tokens and record.outcome is COMPLETED:
                real = record.output_tokens / record.sequences
                self.prediction.observe(real / record.predicted_tokens, name)

    def _judge(self, record: Record, name: str) -> None:
        late = missed(record)
        if late is None:
            if record.outcome is COMPLETED:
                self.unjudged.add(name)
            return
        self.attainment.add(record, late)
        self.judged.add(name)
        self.totals.missed += bool(late)
        for target in late:
            self.missed.add(name, target)
        if not late:
            self.met.add(name)
            self.good_tokens.add(name, by=record.output_tokens or 0)
