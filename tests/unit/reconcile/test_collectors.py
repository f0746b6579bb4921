from __future__ import annotations

import pytest

from uellm.reconcile.pods.measurements import MEASURE_S, Measurements
from uellm.reconcile.pods.placement_reports import REFRESH_S, PlacementReports
from uellm.reconcile.pods.pod_state import engine_start
from uellm.reconcile.pods.sidecar_client import NotAsked


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
        self.reports = PlacementReports(self._fetch, lambda: self.now_s)

    async def _fetch(self, address):
        self.asked.append(address)
        return self.answer


@pytest.fixture
def pods():
    return Pods()


async def test_a_running_pod_is_asked_until_it_answers_and_then_left_alone(pods, pod):
    pods.answer = None
    assert await pods.reports.refresh([pod()]) == 3.0
    pods.now_s += 3.0
    pods.answer = {"layers": [5, 3]}
    assert await pods.reports.refresh([pod()]) is None
    assert await pods.reports.refresh([pod()]) is None
    assert len(pods.asked) == 2
    assert pods.reports.of([pod()])["uid-a"].layers == (5, 3)


async def test_a_pod_that_does_not_answer_is_asked_less_and_less_often(pods, pod):
    pods.answer = None
    waits = []
    for _ in range(9):
        waits.append(await pods.reports.refresh([pod()]))
        assert await pods.reports.refresh([pod()]) == waits[-1]  # a pass for another reason asks nothing
        pods.now_s += waits[-1]
    assert waits == [3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 192.0, 300.0, 300.0]
    assert len(pods.asked) == 9


async def test_a_pod_that_becomes_ready_is_asked_at_once(pods, pod):
    pods.answer = None
    await pods.reports.refresh([pod()])
    ready = pod()
    ready["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    assert await pods.reports.refresh([ready]) == 3.0
    assert len(pods.asked) == 2


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
    assert await pods.reports.refresh([make.pod("b"), waiting]) is None
    assert pods.asked == []


async def test_reports_of_pods_that_are_gone_are_dropped(pods, pod):
    await pods.reports.refresh([pod("a"), pod("b")])
    pods.reports.keep({"uid-b"})
    assert list(pods.reports.of([pod("a"), pod("b")])) == ["uid-b"]


def test_a_crashed_engine_has_started():
    ended = {"status": {"containerStatuses": [{"name": "engine", "state": {"terminated": {}}}]}}
    assert engine_start(ended) == "0"


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


async def test_figures_that_stay_as_they_are_are_asked_for_less_often(pod):
    pods, waits = Measured(), []
    for _ in range(5):
        waits.append(await pods.measurements.refresh([pod()]))
        pods.now_s += waits[-1]
    assert waits == [60.0, 120.0, 240.0, 300.0, 300.0]
    pods.answer = {"classes": [{"name": "chat", "requests": 5, "met": 4}]}
    assert await pods.measurements.refresh([pod()]) == MEASURE_S


async def test_figures_of_a_service_whose_number_follows_the_load_are_asked_for_as_often_as_that_takes(pod):
    load = {"ended": 1, "missed": 0, "promptTokens": 1, "outputTokens": 1, "running": 0, "queued": 0, "cachedShare": 0}
    answers, now_s = [{"version": 1, "classes": [], "load": load}], 0.0

    async def fetch(address):
        return answers[-1]

    measurements = Measurements(fetch, lambda: now_s)
    assert await measurements.refresh([pod()], 15.0) == 15.0
    assert measurements.loads_of([pod()])["uid-a"].load.ended == 1
    now_s = 15.0
    load = {**load, "ended": 2, "passing": 3, "prompts": 2, "answers": 1, "passed": 4}
    answers.append({"version": 1, "classes": [], "load": load})
    assert await measurements.refresh([pod()], 15.0) == 15.0
    assert measurements.loads_of([pod()])["uid-a"] == (15.0, (2, 0, 1, 1, 0, 0, 0.0, None, 3, 2, 1, 4))
    now_s = 30.0
    answers.append({"version": 1, "classes": []})
    await measurements.refresh([pod()], 15.0)
    assert measurements.loads_of([pod()]) == {}


async def test_pods_beyond_the_connections_that_there_are_keep_their_figures_and_come_first_the_next_time(pod):
    load = {"ended": 1, "missed": 0, "promptTokens": 1, "outputTokens": 1, "running": 0, "queued": 0, "cachedShare": 0}
    pods = [pod(str(number)) for number in range(40)]
    now_s, asked = 0.0, 0

    async def fetch(address):
        nonlocal asked
        if asked == 16:
            raise NotAsked
        asked += 1
        return {"version": 1, "classes": [], "load": load}

    measurements, known, dues = Measurements(fetch, lambda: now_s), [], []
    for second in range(18):
        now_s, asked = float(second), 0
        dues.append(await measurements.refresh(pods, 15.0))
        known.append(len(measurements.loads_of(pods)))
    assert known == [16, 32, *[40] * 16]
    assert dues[:3] == [1.0, 1.0, 13.0]
    oldest = min(each.at_s for each in measurements.loads_of(pods).values())
    assert now_s - oldest <= 15.0


async def test_a_load_outlives_answers_that_fail_for_a_minute(pod):
    load = {"ended": 1, "missed": 0, "promptTokens": 1, "outputTokens": 1, "running": 0, "queued": 0, "cachedShare": 0}
    answer, now_s, known = {"version": 1, "classes": [], "load": load}, 0.0, []

    async def fetch(address):
        return answer

    measurements = Measurements(fetch, lambda: now_s)
    for _ in range(6):
        await measurements.refresh([pod()], 15.0)
        known.append(len(measurements.loads_of([pod()])))
        now_s, answer = now_s + 15.0, None
    assert known == [1, 1, 1, 1, 1, 0]


async def test_figures_for_the_status_change_once_a_minute_however_often_the_load_is_read(pod):
    now_s, requests = 0.0, 0

    async def fetch(address):
        return {"version": 1, "classes": [{"name": "chat", "requests": requests, "met": 0}]}

    measurements, seen = Measurements(fetch, lambda: now_s), []
    for _ in range(9):
        requests += 1
        await measurements.refresh([pod()], 15.0)
        seen.append(measurements.of([pod()])["uid-a"][0].requests)
        now_s += 15.0
    assert seen == [1, 1, 1, 1, 5, 5, 5, 5, 9]


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
