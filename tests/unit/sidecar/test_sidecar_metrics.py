"""The metrics port (Prometheus metrics, probes, the placement report), and the access log."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime, timedelta

import pytest

from uellm.proxying.metrics import MAX_SERIES, Counter, Histogram, exposition, with_waiting
from uellm.proxying.outcome import STATUS, RequestOutcome
from uellm.proxying.record import Timestamps
from uellm.sidecar.telemetry.access_log import ACCESS_LOG

SAMPLE = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-z_]+="([^"\\\n]|\\.)*",?)*\})? [0-9.e+-]+(Inf)?')


async def scraped(harness) -> str:
    async with harness.client.get(harness.management("/metrics")) as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return await response.text()


def test_counters_and_histograms_are_written_as_prometheus_reads_them():
    requests = Counter("r_total", "Requests.", "class")
    requests.add('a"b\\c\nd')
    waits = Histogram("w_seconds", "Waits.", "class", buckets=(0.1, 1.0))
    for seconds in (0.1, 0.5, 7.0):
        waits.observe(seconds, "x")
    assert exposition([requests, waits]).splitlines() == [
        "# HELP r_total Requests.",
        "# TYPE r_total counter",
        'r_total{class="a\\"b\\\\c\\nd"} 1',
        "# HELP w_seconds Waits.",
        "# TYPE w_seconds histogram",
        'w_seconds_bucket{class="x",le="0.1"} 1',
        'w_seconds_bucket{class="x",le="1"} 2',
        'w_seconds_bucket{class="x",le="+Inf"} 3',
        'w_seconds_sum{class="x"} 7.6',
        'w_seconds_count{class="x"} 3',
    ]


def test_a_metric_has_no_more_series_than_its_bound():
    requests = Counter("r_total", "Requests.", "class")
    for number in range(3 * MAX_SERIES):
        requests.add(str(number))
    assert len(list(requests.lines())) <= MAX_SERIES + 3
    assert requests.value("other") == 2 * MAX_SERIES


def test_the_engines_waiting_requests_include_ours_and_nothing_else_changes():
    engine = (
        "# TYPE vllm:num_requests_waiting gauge\n"
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 0.0\n'
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0\n'
        'vllm:num_requests_waiting_by_reason{engine="1",model_name="m",reason="capacity"} 5.0\n'
        'vllm:num_requests_waiting{engine="0",model_name="m"} 2.0\n'
        'vllm:num_requests_waiting{engine="1",model_name="m"} 5.0\n'
        "vllm:num_requests_running 3.0\n"
    )
    changed = [line for line in with_waiting(engine, 40).splitlines() if line not in engine.splitlines()]
    assert changed == [
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 42',
        'vllm:num_requests_waiting{engine="0",model_name="m"} 42',
    ]
    assert with_waiting("", 40) == ""


@pytest.mark.parametrize(
    "line", ["vllm:num_requests_waiting{a", "vllm:num_requests_waiting x", "vllm:num_requests_waiting "]
)
def test_a_line_of_the_engines_that_cannot_be_read_is_passed_on_as_it_is(line):
    assert with_waiting(f"{line}\nvllm:num_requests_waiting 1.0\n", 40) == f"{line}\nvllm:num_requests_waiting 41\n"


async def test_one_scrape_has_our_figures_and_the_engines(engine, launch, eventually):
    harness = await launch({"model": "tiny", "classes": [{"name": "a", "ttft": "1s"}], "engine": {"maxNumSeqs": 1}})
    engine.metrics = 'vllm:num_requests_waiting{engine="0"} 1.0\nvllm:num_requests_running{engine="0"} 1.0\n'
    engine.script = engine.on_word
    asked = [harness.ask(), harness.ask()]
    running = await engine.arrivals.get()
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    text = await scraped(harness)
    assert 'uellm_requests_queued{class="a"} 1\n' in text
    assert "uellm_requests_in_flight 1\n" in text
    assert "uellm_engine_ready 1\n" in text
    assert 'uellm_sidecar_info{model="tiny"' in text
    assert 'vllm:num_requests_waiting{engine="0"} 2\n' in text
    assert 'vllm:num_requests_running{engine="0"} 1.0\n' in text
    running.go_on.set()
    (await engine.arrivals.get()).go_on.set()
    for task in asked:
        await task
    text = await scraped(harness)
    assert 'uellm_requests_total{class="a",route="/v1/chat/completions",outcome="completed"} 2\n' in text
    assert 'uellm_queue_seconds_count{class="a"} 2\n' in text
    assert 'uellm_e2e_seconds_count{class="a"} 2\n' in text
    assert all(line.startswith("#") or SAMPLE.fullmatch(line) for line in text.splitlines())


async def test_the_public_ports_metrics_count_our_queue_too(engine, harness):
    engine.metrics = "vllm:num_requests_waiting 1.0\n"
    async with harness.client.get(harness.url("/metrics")) as response:
        text = await response.text()
    assert "vllm:num_requests_waiting 1\n" in text
    assert "uellm_requests_active" in text


async def test_without_the_engine_our_figures_are_there_alone(engine, harness, eventually):
    engine.metrics = "vllm:num_requests_waiting 1.0\n"
    await engine.stop()
    await eventually(lambda: not harness.sidecar.engine.ready)
    text = await scraped(harness)
    assert "uellm_engine_ready 0\n" in text
    assert "vllm:" not in text


async def test_only_streams_show_the_time_of_the_first_token(engine, harness):
    assert (await harness.ask())[0] == 200
    engine.script = engine.stream(b'data: {"choices": []}\n\n', b"data: [DONE]\n\n")
    assert (await harness.ask())[0] == 200
    assert 'uellm_ttft_seconds_count{class="interactive"} 1\n' in await scraped(harness)


async def test_labels_that_clients_choose_make_no_series(engine, harness):
    for number in range(20):
        async with harness.client.get(harness.url(f"/made/up/{number}")):
            pass
        async with harness.post(x_slo_class=f"c{number}"):
            pass
    lines = [line for line in (await scraped(harness)).splitlines() if line.startswith("uellm_requests_total{")]
    assert sorted(lines) == [
        'uellm_requests_total{class="-",route="other",outcome="bad_request"} 20',
        'uellm_requests_total{class="-",route="other",outcome="completed"} 20',
    ]


def test_every_refusal_has_a_status():
    answered = {
        RequestOutcome.COMPLETED,
        RequestOutcome.REJECTED_BY_ENGINE,
        RequestOutcome.FAILED_BY_ENGINE,
        RequestOutcome.CLIENT_LEFT,
    }
    assert set(STATUS) == set(RequestOutcome) - answered


@pytest.fixture
def access_lines():
    lines: list[dict] = []

    class Collector(logging.Handler):
        def emit(self, record):
            lines.append(json.loads(record.getMessage()))

    handler = Collector()
    ACCESS_LOG.addHandler(handler)
    level = ACCESS_LOG.level
    ACCESS_LOG.setLevel(logging.INFO)
    yield lines
    ACCESS_LOG.removeHandler(handler)
    ACCESS_LOG.setLevel(level)


async def test_each_request_is_one_line_of_the_log_and_one_count_with_the_same_outcome(engine, harness, access_lines):
    await harness.ask(b'{"prompt": "planted"}')
    async with harness.post(x_slo_class="none"):
        pass
    async with harness.client.get(harness.url("/sleep?key=planted")):
        pass
    await harness.raw(b"not http\r\n\r\n")
    engine.script = engine.stream(b"data: planted\n\n", hold=True)
    reader, writer = await harness.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
    await reader.readuntil(b"\n\n")
    writer.close()
    await engine.arrivals.get()
    await (await engine.arrivals.get()).left.wait()
    while harness.sidecar.proxy.drain.active:
        await harness.client.get(harness.management("/livez"))
    assert [line["outcome"] for line in access_lines] == [
        *("completed", "bad_request", "forbidden", "bad_request", "client_left"),
    ]
    logged: dict[str, int] = {}
    for line in access_lines:
        logged[line["outcome"]] = logged.get(line["outcome"], 0) + 1
    assert logged == harness.outcomes()
    assert "planted" not in json.dumps(access_lines)
    assert all(line["bytesOut"] > 0 for line in access_lines if line["path"] != "-")
    first, last = access_lines[0], access_lines[-1]
    assert (first["class"], first["status"], first["bytesIn"], first["bytesOut"]) == ("interactive", 200, 21, 21)
    assert first["milliseconds"] >= first["queueMilliseconds"] >= 0
    assert (last["status"], last["path"]) == (200, "/v1/completions")
    assert first["firstByteMilliseconds"] is None, "only streams have one"
    # Zero, where it came within a tick of the clock.
    assert 0 <= last["firstByteMilliseconds"] <= last["milliseconds"]


def test_the_log_has_utc_to_the_millisecond():
    timestamps = Timestamps()
    moments_ns = (0, 999_999_999, 1_000_000_000, 1_767_225_599_006_789_000, 1_767_225_599_999_000_000, 1_000_000)
    for epoch_ns in moments_ns:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=epoch_ns // 1000)
        assert timestamps.at(epoch_ns) == moment.isoformat(timespec="milliseconds")


async def probe(harness, path: str) -> int:
    async with harness.client.get(harness.management(path)) as response:
        return response.status


PROBES = ("/livez", "/readyz", "/engine/startup", "/engine/live", "/engine/ready")


async def probes(harness) -> list[int]:
    return [await probe(harness, path) for path in PROBES]


async def test_probes_distinguish_a_starting_engine_from_a_dead_one(engine, launch, eventually):
    await engine.stop()
    harness = await launch(ready=False)
    assert await probes(harness) == [200, 503, 503, 200, 503]
    await engine.start()
    await eventually(lambda: harness.sidecar.engine.ready)
    assert await probes(harness) == [200, 200, 200, 200, 200]
    engine.healthy = False
    await eventually(lambda: not harness.sidecar.engine.ready)
    assert await probes(harness) == [200, 503, 503, 503, 503]
    engine.healthy = True
    await eventually(lambda: harness.sidecar.engine.ready)
    assert await probes(harness) == [200, 200, 200, 200, 200]


async def test_the_placement_report_is_served_once_it_is_there(launch, tmp_path):
    report = tmp_path / "placement.json"
    harness = await launch(placement=report)
    assert await probe(harness, "/uellm/placement") == 404
    report.write_text('{"layers": [5')
    assert await probe(harness, "/uellm/placement") == 404
    report.write_text('{"layers": [5, 3]}')
    async with harness.client.get(harness.management("/uellm/placement")) as response:
        assert response.headers["Content-Type"].startswith("application/json")
        assert await response.json() == {"layers": [5, 3]}


async def test_management_is_not_on_the_public_port(engine, harness):
    for path in ("/uellm/placement", "/uellm/drain", "/readyz"):
        async with harness.client.post(harness.url(path)):
            pass
    assert not harness.sidecar.proxy.drain.draining
    assert [received.path for received in engine.received] == ["/uellm/placement", "/uellm/drain", "/readyz"]
