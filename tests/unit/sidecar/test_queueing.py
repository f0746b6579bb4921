"""The queue seen from outside: when each request reaches the engine, and what happens to those that do not."""

from __future__ import annotations

import asyncio
import json

import pytest

ONE_AT_A_TIME = {
    "classes": [
        {"name": "interactive", "priority": 10, "ttft": "1s"},
        {"name": "batch", "e2e": "60s"},
        {"name": "strict", "ttft": "100ms", "onDeadline": "Reject"},
    ],
    "engine": {"maxNumSeqs": 1},
}


@pytest.fixture
async def busy(engine, launch):
    """A sidecar whose engine takes one request at a time and is working on one; with that request."""
    engine.script = engine.on_word
    harness = await launch(ONE_AT_A_TIME)
    harness.ask(b"first")
    return harness, await engine.arrivals.get()


async def test_the_earlier_deadline_overtakes_in_the_queue(engine, busy, eventually):
    harness, running = busy
    asked = [harness.ask(b"slow", x_slo_class="batch")]
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    asked.append(harness.ask(b"fast", x_slo_class="interactive"))
    await eventually(lambda: harness.sidecar.dispatcher.queued == 2)
    order = []
    for _ in asked:
        running.go_on.set()
        running = await engine.arrivals.get()
        order.append(running.body)
    running.go_on.set()
    await asyncio.gather(*asked)
    assert order == [b"fast", b"slow"]


async def test_no_more_requests_reach_the_engine_than_it_has_places(engine, busy, eventually):
    harness, running = busy
    asked = [harness.ask() for _ in range(5)]
    await eventually(lambda: harness.sidecar.dispatcher.queued == 5)
    assert engine.arrivals.empty()
    assert harness.sidecar.dispatcher.in_flight == 1
    running.go_on.set()
    for _ in asked:
        (await engine.arrivals.get()).go_on.set()
    assert {status for status, _ in await asyncio.gather(*asked)} == {200}


async def test_unscheduled_routes_do_not_wait(engine, busy):
    harness, _ = busy
    engine.script = engine.echo
    async with harness.client.get(harness.url("/v1/models")) as response:
        assert response.status == 200
        assert "x-uellm-class" not in response.headers


@pytest.mark.parametrize("route", ["chat/completions", "completions", "responses", "embeddings", "messages"])
async def test_every_route_with_work_for_the_gpu_is_scheduled(engine, harness, route):
    async with harness.post(path=f"/v1/{route}", x_slo_class="batch") as response:
        assert response.headers["x-uellm-class"] == "batch"
        assert int(response.headers["x-uellm-queue-ms"]) < 1000


async def test_a_request_without_a_class_gets_the_default_one(engine, launch):
    harness = await launch({"classes": [{"name": "a", "ttft": "1s"}, {"name": "b", "ttft": "1s"}], "defaultClass": "b"})
    async with harness.post() as response:
        assert response.headers["x-uellm-class"] == "b"


async def test_a_service_without_classes_has_the_class_default(engine, launch):
    harness = await launch({"classes": []})
    async with harness.post(x_slo_class="default") as response:
        assert response.headers["x-uellm-class"] == "default"


async def test_an_unknown_class_is_refused_with_the_names_of_the_known_ones(engine, harness):
    async with harness.post(x_slo_class="Gold") as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["type"] == "invalid_request_error"
    assert "interactive, batch" in error["message"]
    assert engine.received == []


async def test_a_full_queue_is_refused_with_the_time_to_retry(engine, launch, eventually):
    harness = await launch({**ONE_AT_A_TIME, "scheduling": {"maxQueuedRequests": 1}})
    engine.script = engine.on_word
    first, second = harness.ask(), harness.ask()
    running = await engine.arrivals.get()
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    async with harness.post() as response:
        assert response.status == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["error"]["code"] == "queue_full"
    running.go_on.set()
    (await engine.arrivals.get()).go_on.set()
    assert [status for status, _ in await asyncio.gather(first, second)] == [200, 200]
    assert harness.outcomes() == {"queue_full": 1, "completed": 2}


async def test_a_class_that_rejects_gets_504_at_its_deadline_and_not_before(engine, busy):
    harness, running = busy
    started_s = asyncio.get_running_loop().time()
    status, body = await harness.ask(x_slo_class="strict")
    waited_s = asyncio.get_running_loop().time() - started_s
    assert (status, json.loads(body)["error"]["code"]) == (504, "deadline_passed")
    assert 0.09 <= waited_s < 1.0  # the loop's clock counts whole milliseconds
    running.go_on.set()


async def test_memory_for_waiting_bodies_is_bounded(engine, busy, eventually):
    harness, running = busy
    harness.sidecar.proxy.bodies.limit_bytes = 3000
    waiting = harness.ask(b"x" * 2000)
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    assert (await harness.ask(b"x" * 2000))[0] == 429
    running.go_on.set()
    (await engine.arrivals.get()).go_on.set()
    assert (await waiting)[0] == 200
    assert harness.sidecar.proxy.bodies.held_bytes == 0
