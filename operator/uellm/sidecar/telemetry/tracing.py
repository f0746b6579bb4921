"""OpenTelemetry spans of requests, if an OTLP endpoint is configured and the extra `tracing` is installed.

Otherwise OpenTelemetry is not imported, and a client's `traceparent` is passed on to the engine unchanged.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from uellm.http import Headers, Pairs, pairs
from uellm.proxying.outcome import RequestOutcome
from uellm.sidecar.telemetry.access_log import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

LOG = logging.getLogger("uellm.sidecar")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
FLUSH_MS = 2000
_FAILED = (RequestOutcome.FAILED_BY_ENGINE, RequestOutcome.ENGINE_LOST, RequestOutcome.INTERNAL_ERROR)
"""Failures that may come behind a status of 200."""

_CONTEXT = ("traceparent", "tracestate")


def from_environment() -> Tracing | None:
    """Tracing as the environment configures it; None without an endpoint or without the extra `tracing`."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        LOG.warning(
            "spans: an OTLP endpoint is configured, but the extra `tracing` is not installed; no spans are sent"
        )
        return None
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "uellm-sidecar"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """Creates a span for each request."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("uellm.sidecar")
        self._context = TraceContextTextMapPropagator()

    def begin(self, headers: Headers, began_s: float) -> RequestSpan:
        """Begin the span of a request, as a child of the client's span if there is one.

        `began_s`: now, on the record's clock.
        """
        from opentelemetry.trace import SpanKind, set_span_in_context

        given = {name: value for name in _CONTEXT if (value := headers.get(name))}
        start_ns = time.time_ns()
        parent = self._context.extract(given)
        span = self._tracer.start_span("request", context=parent, kind=SpanKind.SERVER, start_time=start_ns)
        passed: dict[str, str] = {}
        self._context.inject(passed, context=set_span_in_context(span))
        return RequestSpan(span, start_ns - round(began_s * 1e9), pairs(passed))

    def close(self) -> None:
        """Send the remaining spans. Takes seconds if the endpoint does not answer."""
        self._provider.force_flush(FLUSH_MS)


class RequestSpan:
    """The span of one request."""

    def __init__(self, span: Span, epoch_ns: int, headers: Pairs) -> None:
        """`epoch_ns`: when the record's clock stood at 0."""
        self._span = span
        self._epoch_ns = epoch_ns
        self.headers = headers
        """Trace headers for the engine, instead of the client's."""

    def end(self, record: Record) -> None:
        """End the span. It holds nothing that was asked or answered."""
        from opentelemetry.trace import StatusCode

        span = self._span
        span.update_name(f"{record.method} {record.route}")
        attributes: dict[str, str | int | float | None] = {
            "http.request.method": record.method,
            "http.route": record.route,
            "http.response.status_code": record.status,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.output_tokens,
            "uellm.request_id": record.id,
            "uellm.class": record.slo_class,
            "uellm.outcome": str(record.outcome),
            "uellm.predicted_tokens": record.predicted_tokens,
        }
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if record.sent_s is not None:
            span.add_event("sent to the engine", timestamp=self._at_ns(record.arrival_s + record.sent_s))
        if record.first_token_s is not None:
            span.add_event("first token", timestamp=self._at_ns(record.first_token_s))
        if record.status >= 500 or not record.status or record.outcome in _FAILED:
            span.set_status(StatusCode.ERROR, str(record.outcome))
        span.end(self._at_ns(record.end_s))

    def _at_ns(self, clock_s: float) -> int:
        return self._epoch_ns + round(clock_s * 1e9)
