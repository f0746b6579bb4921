from __future__ import annotations

import asyncio
import json

import pytest

from uellm.reconcile.pods import reports as module
from uellm.reconcile.pods.reports import (
    MEASURE_S,
    REFRESH_S,
    HttpReports,
    Measurements,
    Reports,
    engine_start,
    parse,
)


@pytest.fixture
def pod(make):
    def build(name="a", *, restarts=0, ip="10.0.0.1", **state):
        engine = {"name": "engine", "restartCount": restarts, "state": state or {"running": {}}}
        return make.pod(name, podIP=ip, containerStatuses=[engine])

    return build


class Pods:
    """Pods that answer with the document in `answer`; and the time."""

    def __init__(self):
        self.answer = {"layers": [5, 3]}
        self.asked = []
        self.now_s = 0.0
        self.reports = Reports(self._fetch, lambda: self.now_s)

    async def _fetch(self, address):
        self.asked.append(address)
        return self.answer


@pytest.fixture
def pods():
    return Pods()


async def test_a_running_pod_is_asked_until_it_answers_and_then_left_alone(pods, pod):
    pods.answer = None
    assert await pods.reports.refresh([pod()])
    assert await pods.reports.refresh([pod()])
    pods.answer = {"layers": [5, 3]}
    assert not await pods.reports.refresh([pod()])
    assert not await pods.reports.refresh([pod()])
    assert len(pods.asked) == 3
    assert pods.reports.of([pod()])["uid-a"].layers == (5, 3)


async def test_a_restarted_engine_is_asked_again(pods, pod):
    await pods.reports.refresh([pod()])
    pods.answer = {"layers": [4, 4]}
    await pods.reports.refresh([pod(restarts=1)])
    assert pods.reports.of([pod()])["uid-a"].layers == (4, 4)


async def test_an_old_report_is_asked_for_again(pods, pod):
    await pods.reports.refresh([pod()])
    pods.now_s = REFRESH_S + 1
    await pods.reports.refresh([pod()])
    assert len(pods.asked) == 2


async def test_pods_without_an_address_or_a_started_engine_are_not_asked(pods, pod, make):
    waiting = pod(waiting={"reason": "PodInitializing"})
    assert not await pods.reports.refresh([make.pod("b"), waiting])
    assert pods.asked == []


async def test_reports_of_pods_that_are_gone_are_dropped(pods, pod):
    await pods.reports.refresh([pod("a"), pod("b")])
    pods.reports.keep({"uid-b"})
    assert list(pods.reports.of([pod("a"), pod("b")])) == ["uid-b"]


def test_a_crashed_engine_has_started():
    ended = {"status": {"containerStatuses": [{"name": "engine", "state": {"terminated": {}}}]}}
    assert engine_start(ended) == "0"


@pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b'"x"', b" " * 300_000])
def test_an_answer_that_is_not_a_report_is_ignored(body):
    assert parse(200, body) is None


def test_only_a_good_answer_is_a_report():
    assert parse(404, json.dumps({"error": "absent"}).encode()) is None
    assert parse(200, b'{"layers": [1]}') == {"layers": [1]}


class Measured:
    """Pods that report the results of their requests; and the time."""

    def __init__(self):
        self.answer = {"classes": [{"name": "chat", "requests": 4, "met": 3}]}
        self.asked = []
        self.now_s = 100.0
        self.measurements = Measurements(self._fetch, lambda: self.now_s)

    async def _fetch(self, address):
        self.asked.append(address)
        return self.answer


async def test_figures_are_asked_for_once_a_minute(pod):
    pods = Measured()
    assert await pods.measurements.refresh([pod()]) == MEASURE_S
    pods.now_s += MEASURE_S - 1
    assert await pods.measurements.refresh([pod()]) == 1
    assert len(pods.asked) == 1
    pods.now_s += 1
    await pods.measurements.refresh([pod()])
    assert len(pods.asked) == 2
    assert pods.measurements.of([pod()])["uid-a"][0].met == 3


async def test_a_pod_that_does_not_answer_any_more_has_no_figures(pod):
    pods = Measured()
    await pods.measurements.refresh([pod()])
    pods.now_s, pods.answer = pods.now_s + MEASURE_S, None
    await pods.measurements.refresh([pod()])
    assert pods.measurements.of([pod()]) == {}


async def test_without_a_running_engine_nothing_is_asked_and_nothing_is_due(pod):
    pods = Measured()
    assert await pods.measurements.refresh([pod(waiting={})]) is None
    assert pods.asked == []


async def test_figures_of_pods_that_are_gone_are_dropped(pod):
    pods = Measured()
    await pods.measurements.refresh([pod()])
    pods.measurements.keep(set())
    assert pods.measurements.of([pod()]) == {}


HIDDEN = [f"127.0.0.{number}" for number in range(1, 41)]


class Silent:
    """A pod behind a network policy: nothing answers, as long as it is `hidden`. Counts connections."""

    def __init__(self):
        self.hidden = True
        self.asked = 0
        self.over = asyncio.Event()

    async def serve(self, reader, writer):
        self.asked += 1
        await reader.readuntil(b"\r\n\r\n")
        if self.hidden:
            await self.over.wait()
        else:
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"layers": 1}')
            await writer.drain()
        writer.close()


@pytest.fixture
async def silent():
    pod = Silent()
    first = await asyncio.start_server(pod.serve, HIDDEN[0], 0)
    pod.port = first.sockets[0].getsockname()[1]
    others = await asyncio.start_server(pod.serve, HIDDEN[1:], pod.port)
    yield pod
    pod.over.set()
    for server in (first, others):
        server.close()


async def test_a_pod_from_which_no_packet_comes_is_asked_less_and_less_often(silent, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    now_s = 0.0
    async with HttpReports(port=silent.port, clock=lambda: now_s) as reports:
        for wait_s in (5.0, 10.0, 20.0):
            asked = silent.asked
            assert await reports.placement("127.0.0.1") is None
            assert await reports.placement("127.0.0.1") is None
            assert silent.asked == asked + 1
            now_s += wait_s
        silent.hidden = False
        assert await reports.placement("127.0.0.1") == {"layers": 1}
        assert await reports.placement("127.0.0.1") == {"layers": 1}


async def test_however_many_pods_are_hidden_few_requests_wait_for_them(silent, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    async with HttpReports(port=silent.port) as reports:
        pending = [asyncio.create_task(reports.placement(address)) for address in HIDDEN]
        done, waiting = await asyncio.wait(pending, timeout=0.1)
        assert len(waiting) == module.MOST_OPEN
        assert {task.result() for task in done} == {None}
        await asyncio.gather(*waiting)
