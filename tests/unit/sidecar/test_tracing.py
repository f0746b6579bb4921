"""Spans if tracing is on. If it is off, a client's trace context is passed on unchanged."""

from __future__ import annotations

import json
import re
import sys

import pytest

from uellm.sidecar.telemetry.tracing import ENDPOINTS, Tracing, from_environment

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the tracing extra is not installed")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PLANTED = "zanzibarprompt"


@pytest.fixture
def spans():
    return memory.InMemorySpanExporter()


@pytest.fixture
async def traced(launch, spans):
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    harness = await launch()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    harness.sidecar.proxy.tracing = Tracing(provider)
    return harness


async def test_a_clients_trace_context_is_passed_on_without_spans_of_ours(engine, harness):
    async with harness.post(traceparent=GIVEN, tracestate="a=b"):
        pass
    headers = engine.received[0].headers
    assert (headers.getall("traceparent"), headers.getall("tracestate")) == ([GIVEN], ["a=b"])


async def test_our_span_is_between_the_clients_and_the_engines(engine, traced, spans):
    async with traced.post(traceparent=GIVEN, tracestate="a=b"):
        pass
    (span,) = spans.get_finished_spans()
    (passed,) = engine.received[0].headers.getall("traceparent")
    assert engine.received[0].headers.getall("tracestate") == ["a=b"]
    assert passed == f"00-0af7651916cd43dd8448eb211c80319c-{span.context.span_id:016x}-01"
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"


async def test_a_span_has_the_requests_outcome_and_none_of_its_text(engine, traced, spans):
    engine.script = engine.stream(b'data: {"choices": []}\n\n', b"data: [DONE]\n\n")
    body = json.dumps({"messages": [{"role": "user", "content": PLANTED}], "stream": True}).encode()
    async with traced.post(body, authorization=f"Bearer {PLANTED}", x_llm_d_inference_fairness_id=PLANTED):
        pass
    (span,) = spans.get_finished_spans()
    assert span.name == "POST /v1/chat/completions"
    told = dict(span.attributes)
    assert (told["uellm.outcome"], told["uellm.class"]) == ("completed", "interactive")
    assert told["http.response.status_code"] == 200
    assert [event.name for event in span.events] == ["sent to the engine", "first token"]
    assert span.start_time <= span.events[0].timestamp <= span.events[1].timestamp <= span.end_time
    assert not re.search(PLANTED, span.to_json())


async def test_an_engine_that_fails_inside_a_stream_makes_the_span_an_error(engine, traced, spans):
    engine.script = engine.stream(b'data: {"error": {"code": 500}}\n\n', b"data: [DONE]\n\n")
    async with traced.post(b'{"messages": [], "stream": true}'):
        pass
    (span,) = spans.get_finished_spans()
    assert (span.status.is_ok, span.status.description) == (False, "failed_by_engine")


async def test_a_refusal_has_a_span_too(traced, spans):
    async with traced.post(x_slo_class="gold"):
        pass
    (span,) = spans.get_finished_spans()
    assert span.attributes["uellm.outcome"] == "bad_request"


def test_nothing_is_asked_for_by_default(monkeypatch):
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert from_environment() is None


def test_an_endpoint_without_the_extra_is_logged_and_changes_nothing(monkeypatch, caplog):
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:9/v1/traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert from_environment() is None
    assert "the extra `tracing` is not installed" in caplog.text


def test_an_endpoint_and_the_extra_make_spans(monkeypatch):
    monkeypatch.setenv(ENDPOINTS[1], "http://127.0.0.1:9")
    made = from_environment()
    assert isinstance(made, Tracing)
    made.close()
