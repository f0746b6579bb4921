"""What is known of one request when it is over: one line of the access log and one step of each figure.

Neither holds what was asked or answered: no body, no query string, no header but the request's id.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from uellm.sidecar.metrics import Counter, Gauge, Histogram, Labels, Metric
from uellm.sidecar.outcome import Outcome

ACCESS_LOG = logging.getLogger("uellm.sidecar.access")

NO_CLASS = "-"
OTHER_ROUTE = "other"


@dataclass
class Record:
    """One request. Times in seconds on the event loop's clock; None for what did not happen."""

    method: str
    path: str
    arrival_s: float
    id: str = ""
    slo_class: str = NO_CLASS
    route: str = OTHER_ROUTE
    outcome: Outcome = Outcome.INTERNAL_ERROR
    status: int = 0
    queue_s: float | None = None
    first_byte_s: float | None = None
    end_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    done: bool = False
    """The stream's `[DONE]` was sent. OpenAI's clients hang up on it, without waiting for the end of the answer."""

    def to_json(self) -> str:
        """The line of the access log."""
        return json.dumps(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "id": self.id,
                "method": self.method,
                "path": self.path[:256],
                "class": self.slo_class,
                "outcome": str(self.outcome),
                "status": self.status,
                "queueMilliseconds": _milliseconds(self.queue_s),
                "firstByteMilliseconds": _milliseconds(self.first_byte_s),
                "milliseconds": _milliseconds(self.end_s - self.arrival_s),
                "bytesIn": self.bytes_in,
                "bytesOut": self.bytes_out,
            }
        )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


class Figures:
    """The sidecar's own metrics."""

    def __init__(self) -> None:
        self.requests = Counter(
            "uellm_requests_total", "Requests that ended, by their one outcome.", "class", "route", "outcome"
        )
        self.queue = Histogram("uellm_queue_seconds", "Time from arrival until sent to the engine.", "class")
        self.first_byte = Histogram(
            "uellm_ttft_seconds", "Time from arrival to the first byte of a streamed answer's body.", "class"
        )
        self.end_to_end = Histogram("uellm_e2e_seconds", "Time from arrival to the end of completed requests.", "class")
        self.reloads = Counter("uellm_config_reloads_total", "Changes of the configuration file.", "result")
        self.metrics: list[Metric] = [self.requests, self.queue, self.first_byte, self.end_to_end, self.reloads]

    def gauge(self, name: str, text: str, read: Callable[[], float | Mapping[Labels, float]], *labels: str) -> None:
        """Add a figure that is looked up at every scrape."""
        self.metrics.append(Gauge(name, text, read, *labels))

    def count(self, record: Record) -> None:
        """Take a request that ended into the figures and the access log."""
        self.requests.add(record.slo_class, record.route, str(record.outcome))
        if record.queue_s is not None:
            self.queue.observe(record.queue_s, record.slo_class)
        if record.first_byte_s is not None and record.route != OTHER_ROUTE:
            self.first_byte.observe(record.first_byte_s, record.slo_class)
        if record.outcome is Outcome.COMPLETED and record.route != OTHER_ROUTE:
            self.end_to_end.observe(record.end_s - record.arrival_s, record.slo_class)
        if ACCESS_LOG.isEnabledFor(logging.INFO):
            ACCESS_LOG.info("%s", record.to_json())
