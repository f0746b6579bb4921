"""The record of one request, its line in the access log, and the gateway's metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as json_string

from uellm.gateway.catalog import ServiceKey
from uellm.proxying.faults import Faults
from uellm.proxying.log_writer import DroppedLines, log_line
from uellm.proxying.metrics import Counter, Gauge, Histogram, Metric
from uellm.proxying.record import RequestRecord, json_string_or_null, milliseconds

ACCESS_LOG = logging.getLogger("uellm.gateway.access")
NO_SERVICE = ServiceKey("-", "-")

OWN_SECONDS_BUCKETS = (1e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""Of the time that the gateway itself takes."""


@dataclass
class GatewayRecord(RequestRecord):
    """One request."""

    service: ServiceKey = NO_SERVICE
    held_s: float | None = None
    """How long it waited for the service's first replica."""
    sent_s: float | None = None
    """When it was first sent to a replica, since its arrival."""
    tries: int = 0
    """To how many replicas it was sent."""
    replica: str = ""
    """Address of the last one."""

    def to_json(self) -> str:
        """The line of the access log."""
        return (
            f'{{{self.identity()}, "namespace": {json_string(self.service.namespace)}, '
            f'"service": {json_string(self.service.name)}, "replica": {json_string_or_null(self.replica)}, '
            f'"tries": {self.tries}, "outcome": "{self.outcome}", "status": {self.status}, '
            f'"heldMilliseconds": {milliseconds(self.held_s)}, "sentMilliseconds": {milliseconds(self.sent_s)}, '
            f'"firstByteMilliseconds": {milliseconds(self.first_byte_s)}, '
            f'"milliseconds": {milliseconds(self.end_s - self.arrival_s)}, '
            f'"bytesIn": {self.bytes_in}, "bytesOut": {self.bytes_out}}}'
        )


class GatewayMetrics:
    """Everything that is counted. Gauges are added by whoever knows their values."""

    def __init__(self, exists: Callable[[ServiceKey], bool]) -> None:
        """`exists`: whether there is such a service. What ends later counts as of none."""
        self._exists = exists
        self.faults = Faults(
            "uellm_gateway_faults_total", "Faults of the gateway's own bookkeeping; no answer is lost."
        )
        service = ("namespace", "service")
        self.requests = Counter(
            "uellm_gateway_requests_total", "Requests that ended, by service and outcome.", *service, "outcome", few=1
        )
        self.retries = Counter(
            "uellm_gateway_retries_total", "Requests sent to a further replica, by reason.", *service, "reason", few=1
        )
        self.wanted = Counter("uellm_gateway_wanted_total", "Times that a first replica was asked for.", *service)
        self.held = Histogram(
            "uellm_gateway_held_seconds", "Time that requests waited for the first replica of a service.", *service
        )
        self.own = Histogram(
            "uellm_gateway_sent_seconds",
            "Time from arrival until a request was sent to its first replica, without the time that it was held.",
            buckets=OWN_SECONDS_BUCKETS,
        )
        self.metrics: list[Metric] = [
            *(self.requests, self.retries, self.wanted, self.held, self.own, self.faults.counter),
            DroppedLines("uellm_gateway_log_lines_dropped_total", ACCESS_LOG),
        ]

    def gauge(self, gauge: Gauge) -> None:
        """Add a gauge."""
        self.metrics.append(gauge)

    def count(self, record: GatewayRecord) -> None:
        """Count a request that ended, and log it. Raises nothing: its client has its answer."""
        with self.faults.guard("metrics", record.id):
            service = self._labels(record.service)
            self.requests.add(*service, str(record.outcome))
            if record.held_s is not None:
                self.held.observe(record.held_s, *service)
            if record.sent_s is not None:
                self.own.observe(record.sent_s - (record.held_s or 0.0))
        with self.faults.guard("log", record.id):
            log_line(ACCESS_LOG, record.to_json)

    def count_retry(self, key: ServiceKey, reason: str) -> None:
        """Count a request that is sent to a further replica."""
        self.retries.add(*self._labels(key), reason)

    def count_wanted(self, key: ServiceKey) -> None:
        """Count that a first replica is asked for."""
        self.wanted.add(*self._labels(key))

    def forget(self, key: ServiceKey) -> None:
        """Drop the series of a service that is gone, so that they are not in the way of those of a new one."""
        for metric in (self.requests, self.retries, self.wanted, self.held):
            metric.forget(key.namespace, key.name)

    def _labels(self, key: ServiceKey) -> tuple[str, str]:
        return (key.namespace, key.name) if self._exists(key) else (NO_SERVICE.namespace, NO_SERVICE.name)
