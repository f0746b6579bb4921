"""Requests of a service without a replica wait for one, within bounds, and are told nothing false."""

from __future__ import annotations

import asyncio

import openai
import pytest

from helpers.fake_engine import FakeEngine, eventually
from uellm.gateway.catalog import TargetClass
from uellm.gateway.holding import HoldLimits
from uellm.proxying.keys import Keys


async def test_a_request_waits_for_a_replica_that_is_asked_for_and_then_streams(harness, engines) -> None:
    engine = await engines()
    engine.script = FakeEngine.stream(b"data: 1\n\n", b"data: [DONE]\n\n")
    service = harness.serve("llama", wakes=True, replicas=0)
    asking = [harness.ask() for _ in range(3)]
    await asyncio.wait_for(harness.view.asked.wait(), 5)
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 3)
    assert 'uellm_gateway_requests_held{namespace="default",service="llama"} 3' in await harness.figures()
    harness.place(service, engine.port)
    assert await asyncio.gather(*asking) == [(200, b"data: 1\n\ndata: [DONE]\n\n")] * 3
    assert harness.view.wanted == [service.key]
    assert harness.gateway.holding.held_bytes == 0


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"suspended": True, "wakes": True}, "it is suspended"),
        ({"replicas": 0}, "it is scaled to 0 replicas and has no spec.autoscaling"),
    ],
)
async def test_nobody_waits_for_a_replica_that_will_not_start(harness, facts, why) -> None:
    harness.serve("llama", **facts)
    async with harness.post() as response:
        assert response.status == 503
        assert response.headers["x-should-retry"] == "false"
        message = (await response.json())["error"]["message"]
    assert message == f"llama has no replica, and none will start: {why}"
    assert harness.view.wanted == []


async def test_a_service_that_starts_by_itself_is_waited_for_but_not_asked_for(launch, engines) -> None:
    harness = await launch()
    service = harness.serve("llama", replicas=1)
    asking = harness.ask()
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
    harness.place(service, (await engines()).port)
    assert (await asking)[0] == 200
    assert harness.view.wanted == []


async def test_more_than_the_bound_are_refused_with_a_time_to_retry(launch, engines) -> None:
    harness = await launch(holding=HoldLimits(requests=2))
    service = harness.serve("llama", wakes=True, replicas=0, startup_s=20.0)
    asking = [harness.ask(), harness.ask()]
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 2)
    async with harness.post() as response:
        assert response.status == 429
        assert 19 <= int(response.headers["Retry-After"]) <= 24
        message = (await response.json())["error"]["message"]
    assert message == "llama has no replica yet and 2 requests wait for one; retry later"
    harness.place(service, (await engines()).port)
    assert [status for status, _ in await asyncio.gather(*asking)] == [200, 200]


@pytest.mark.parametrize(
    ("limits", "bounds"),
    [
        (HoldLimits(service_bytes=100), "100 may for one service and 134217728 for all"),
        (HoldLimits(bytes=100), "33554432 may for one service and 100 for all"),
    ],
)
async def test_a_body_that_cannot_be_kept_is_refused_and_a_replica_asked_for_all_the_same(
    launch, engines, limits, bounds
) -> None:
    harness = await launch(holding=limits)
    service = harness.serve("llama", wakes=True, replicas=0)
    large = b'{"model":"llama","x":"' + b"x" * 100 + b'"}'
    async with harness.post(large) as response:
        assert response.status == 429
        assert 5 <= int(response.headers["Retry-After"]) <= 15
        message = (await response.json())["error"]["message"]
    assert message == (
        "llama has no replica yet and this body of 124 bytes cannot be kept until it has: "
        f"bodies of 0 bytes wait for it, {bounds}; retry later"
    )
    await eventually(lambda: harness.view.wanted == [service.key])
    harness.place(service, (await engines()).port)
    assert (await harness.ask(large))[0] == 200


async def test_a_class_that_rejects_late_requests_waits_for_its_deadline_alone(launch) -> None:
    harness = await launch(holding=HoldLimits(hold_s=60))
    harness.serve(
        "llama",
        wakes=True,
        replicas=0,
        classes=(TargetClass("batch"), TargetClass("now", ttft_s=0.05, rejects_late=True)),
    )
    async with harness.post(X_Slo_Class="now") as response:
        assert response.status == 504
        message = (await response.json())["error"]["message"]
    assert message == "no replica of llama started within 0.05 s"


async def test_a_target_of_the_requests_own_takes_the_place_of_its_classs(launch, engines) -> None:
    harness = await launch(holding=HoldLimits(hold_s=60))
    now = TargetClass("now", ttft_s=0.05, e2e_s=0.05, rejects_late=True)
    service = harness.serve("llama", wakes=True, replicas=0, classes=(now,))
    async with harness.post(X_Slo_Ttft_Ms="20") as response:
        assert response.status == 504
        assert (await response.json())["error"]["message"] == "no replica of llama started within 0.02 s"
    patient = harness.ask(X_Llm_D_Slo_Ttft_Ms="60000")
    async with harness.post(X_Llm_D_Slo_Ttft_Ms="soon") as response:
        assert response.status == 504, "the sidecar would refuse it: it counts as none"
    assert not patient.done()
    harness.place(service, (await engines()).port)
    assert (await patient)[0] == 200


async def test_others_wait_for_the_longest_time_that_is_allowed(launch) -> None:
    harness = await launch(holding=HoldLimits(hold_s=0.05))
    harness.serve("llama", wakes=True, replicas=0, startup_s=0.01)
    async with harness.post() as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
    assert harness.outcomes() == {"engine_unavailable": 1}


async def test_a_request_whose_deadline_the_start_cannot_keep_is_told_at_once_when_to_come_back(launch) -> None:
    harness = await launch(holding=HoldLimits(hold_s=30))
    now = TargetClass("now", ttft_s=30.0, rejects_late=True)
    service = harness.serve("llama", wakes=True, replicas=0, startup_s=180.0, classes=(now,))
    async with harness.post() as response:
        assert response.status == 503
        assert 45 <= int(response.headers["Retry-After"]) <= 55, "clients ignore a longer time"
        message = (await response.json())["error"]["message"]
    assert message == "a replica of llama is starting, which takes about 180 s more; retry later"
    await eventually(lambda: harness.view.wanted == [service.key])


async def test_a_request_without_a_deadline_waits_however_long_the_start_takes(harness, engines) -> None:
    service = harness.serve("llama", wakes=True, replicas=0, startup_s=480.0)
    url = f"http://127.0.0.1:{harness.gateway.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
        asking = asyncio.create_task(client.chat.completions.create(model="llama", messages=[]))
        await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
        harness.place(service, (await engines()).port)
        await asyncio.wait_for(asking, 5)


async def test_after_the_longest_time_it_is_told_a_time_to_retry_that_clients_obey(launch) -> None:
    harness = await launch(holding=HoldLimits(hold_s=0.05))
    service = harness.serve("llama", wakes=True, replicas=0, startup_s=480.0)
    async with harness.post() as response:
        assert response.status == 503
        assert 45 <= int(response.headers["Retry-After"]) <= 55
        message = (await response.json())["error"]["message"]
    assert message == "no replica of llama started within 0.05 s; retry later"
    left_s = harness.gateway.holding._until_s[service.key] - asyncio.get_running_loop().time()
    assert left_s > 480, "it is asked for until the client can have its answer"


async def test_a_client_that_leaves_while_it_waits_frees_its_place(harness) -> None:
    service = harness.serve("llama", wakes=True, replicas=0)
    asking = harness.ask()
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
    asking.cancel()
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 0)
    await eventually(lambda: harness.outcomes() == {"client_left": 1})


async def test_a_service_that_is_deleted_is_waited_for_no_longer(harness) -> None:
    service = harness.serve("llama", wakes=True, replicas=0)
    asking = harness.ask()
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
    harness.gateway.fleet.drop(service.key)
    status, body = await asking
    assert status == 404
    assert b"llama was deleted while the request waited" in body


async def test_a_service_that_is_being_deleted_serves_until_its_last_replica_is_gone_and_wakes_no_more(
    harness, engines
) -> None:
    facts = {"wakes": False, "replicas": 0, "deleting": True}
    service = harness.serve("llama", (await engines()).port, **facts)
    assert (await harness.ask())[0] == 200
    assert [each["id"] for each in harness.gateway.fleet.catalog.listed()] == ["llama"]
    harness.place(service)
    status, body = await harness.ask()
    assert status == 404
    assert b"The model `llama` does not exist" in body
    assert harness.gateway.fleet.catalog.listed() == []
    assert harness.view.wanted == []


async def test_requests_that_wait_for_a_service_are_answered_as_soon_as_its_deletion_begins(harness) -> None:
    service = harness.serve("llama", wakes=True, replicas=0)
    asking = harness.ask()
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
    harness.serve("llama", wakes=False, replicas=0, deleting=True)
    status, body = await asyncio.wait_for(asking, 5)
    assert status == 404
    assert b"llama is being deleted" in body
    await eventually(lambda: not harness.gateway.holding._asking)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({"suspended": True, "wakes": False, "replicas": 0}, "it is suspended"),
        ({"wakes": False, "replicas": 0}, "it is scaled to 0 replicas and has no spec.autoscaling"),
    ],
)
async def test_a_service_that_is_stopped_while_requests_wait_is_waited_for_no_longer(
    harness, monkeypatch, edit, why
) -> None:
    monkeypatch.setattr("uellm.gateway.holding.ASK_EVERY_S", 0.01)
    service = harness.serve("llama", wakes=True, replicas=0)
    asking = harness.ask()
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
    harness.serve("llama", **edit)
    status, body = await asyncio.wait_for(asking, 5)
    assert status == 503
    assert f"llama has no replica, and none will start: {why}" in body.decode()
    await eventually(lambda: not harness.gateway.holding._asking)


async def test_an_edit_that_lets_the_service_start_all_the_same_changes_nothing_for_those_that_wait(
    harness, engines
) -> None:
    service = harness.serve("llama", wakes=True, replicas=0)
    asking = harness.ask()
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
    harness.serve("llama", wakes=False, replicas=1)
    harness.place(service, (await engines()).port)
    assert (await asking)[0] == 200


async def test_a_service_made_anew_is_asked_for_although_the_old_one_still_is(harness, engines) -> None:
    """The request to the API server for the old one may take long."""
    answered = asyncio.Event()
    asked: list[str] = []

    async def want(service) -> None:
        asked.append(service.uid)
        await answered.wait()

    harness.view.want = want
    service = harness.serve("llama", wakes=True, replicas=0, uid="old")
    first = harness.ask()
    await eventually(lambda: asked == ["old"])
    harness.gateway.fleet.drop(service.key)
    assert (await first)[0] == 404
    harness.serve("llama", wakes=True, replicas=0, uid="new")
    second = harness.ask()
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
    answered.set()
    await eventually(lambda: asked == ["old", "new"])
    harness.place(service, (await engines()).port)
    assert (await second)[0] == 200


async def test_a_key_is_checked_before_a_request_waits_where_the_gateway_may_know_the_keys(harness, engines) -> None:
    service = harness.serve("llama", wakes=True, replicas=0, keys_secret="keys")
    harness.view.keys_of[service.key] = Keys(["right"])
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        async with harness.post(**headers) as response:
            assert response.status == 401
    assert harness.view.wanted == []
    asking = harness.ask(Authorization="Bearer right")
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
    harness.place(service, (await engines()).port)
    assert (await asking)[0] == 200


async def test_where_it_may_not_the_request_waits_and_the_sidecar_checks(harness, engines) -> None:
    service = harness.serve("llama", wakes=True, replicas=0, keys_secret="keys")
    asking = harness.ask(Authorization="Bearer any")
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
    engine = await engines()
    harness.place(service, engine.port)
    assert (await asking)[0] == 200
    assert engine.received[0].headers["Authorization"] == "Bearer any"


async def test_a_replica_is_asked_for_until_the_client_comes_back_that_was_told_when(launch, monkeypatch) -> None:
    monkeypatch.setattr("uellm.gateway.holding.ASK_EVERY_S", 0.01)
    harness = await launch()
    now = TargetClass("now", ttft_s=0.01, rejects_late=True)
    service = harness.serve("llama", wakes=True, replicas=0, startup_s=20.0, classes=(now,))
    assert (await harness.ask())[0] == 503
    await eventually(lambda: len(harness.view.wanted) > 3)
    async with harness.post() as response:
        message = (await response.json())["error"]["message"]
    assert message.startswith("a replica of llama is starting, which takes about")
    harness.place(service, 1)
    await eventually(lambda: not harness.gateway.holding._asking)
    asked = len(harness.view.wanted)
    harness.place(service)
    await eventually(lambda: not harness.gateway.holding._since_s)
    assert len(harness.view.wanted) == asked
