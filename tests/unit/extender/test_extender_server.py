"""The extender over real sockets; the cluster is a list of events, the clock a number."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace

import aiohttp
import pytest

from uellm.errors import CannotBeDone
from uellm.extender import process
from uellm.extender.metrics import ExtenderMetrics
from uellm.extender.server import ExtenderServer
from uellm.extender.view import View
from uellm.http import RequestLimits
from uellm.kube import GPUNODEPROFILE, POD, Event


class ToldCluster:
    """A `Kube` whose watches yield the events that the test gives."""

    def __init__(self) -> None:
        self._events = {GPUNODEPROFILE: asyncio.Queue(), POD: asyncio.Queue()}
        self._contact = {}

    async def watch(self, kind, *, on_contact, **_) -> AsyncIterator[Event]:
        self._contact[kind] = on_contact
        while True:
            yield await self._events[kind].get()
            self._events[kind].task_done()

    async def tell(self, kind, event_type, obj=None) -> None:
        self._events[kind].put_nowait(Event(event_type, obj or {}))
        await self.settled()

    async def settled(self) -> None:
        """Wait until the watcher asks for the next event, which means that it has handled the last one."""
        await asyncio.gather(*(queue.join() for queue in self._events.values()))

    def contact(self) -> None:
        for heard in self._contact.values():
            heard()


@pytest.fixture
async def extender(make) -> AsyncIterator[SimpleNamespace]:
    cluster, clock = ToldCluster(), SimpleNamespace(now=1000.0)
    view = View(cluster, clock=lambda: clock.now)
    metrics = ExtenderMetrics()
    watching = asyncio.create_task(view.run())
    limits = RequestLimits(body_bytes=1000, body_deadline_s=0.05)
    async with (
        ExtenderServer(view, make.refusal_on("small"), metrics, "127.0.0.1", 0, limits=limits) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client,
    ):
        yield SimpleNamespace(cluster=cluster, clock=clock, client=client, port=server.port, metrics=metrics)
    watching.cancel()


@pytest.fixture
async def ready(extender, make) -> SimpleNamespace:
    for name in ("big", "small"):
        await extender.cluster.tell(GPUNODEPROFILE, "ADDED", make.profile(name, product=name))
    await extender.cluster.tell(GPUNODEPROFILE, "SYNCED")
    await extender.cluster.tell(POD, "SYNCED")
    extender.cluster.contact()
    return extender


async def ask(extender, verb: str, pod: dict, *names: str):
    async with extender.client.post(f"/{verb}", json={"Pod": pod, "Nodes": None, "NodeNames": names}) as response:
        assert response.status == 200
        return await response.json()


async def test_filter_refuses_what_cannot_hold_the_plan(ready, make):
    answer = await ask(ready, "filter", make.pod(text=make.plan(2)), "big", "small")
    assert answer["NodeNames"] == ["big"]
    assert answer["FailedNodes"] == {"small": "too small: small"}
    assert not answer["Error"]


async def test_a_pod_without_a_plan_passes_everywhere_even_before_the_cluster_is_read(extender, make):
    answer = await ask(extender, "filter", make.pod(), "anywhere")
    assert (answer["NodeNames"], answer["FailedNodes"], answer["Error"]) == (["anywhere"], {}, "")


async def test_before_the_first_lists_are_complete_the_answer_is_an_error(extender, make):
    await extender.cluster.tell(GPUNODEPROFILE, "ADDED", make.profile("big"))
    await extender.cluster.tell(GPUNODEPROFILE, "SYNCED")
    answer = await ask(extender, "filter", make.pod(text=make.plan(2)), "big")
    assert answer["Error"] == "the extender has not read the cluster yet"
    assert answer["NodeNames"] is None


async def test_a_snapshot_without_contact_for_more_than_30_s_is_an_error_until_contact_returns(ready, make):
    ready.clock.now += 30
    assert (await ask(ready, "filter", make.pod(text=make.plan(2)), "big"))["NodeNames"] == ["big"]
    ready.clock.now += 1
    assert (
        "no contact with the API server for 31 s"
        in (await ask(ready, "filter", make.pod(text=make.plan(2)), "big"))["Error"]
    )
    ready.cluster.contact()
    assert (await ask(ready, "filter", make.pod(text=make.plan(2)), "big"))["NodeNames"] == ["big"]


async def test_one_silent_watch_is_enough_to_be_stale(ready):
    ready.clock.now += 31
    ready.cluster._contact[POD]()
    async with ready.client.get("/readyz") as response:
        assert response.status == 503


async def test_events_change_the_next_answer(ready, make):
    plan = make.plan(4)
    assert (await ask(ready, "filter", make.pod(text=plan), "big"))["NodeNames"] == ["big"]
    bound = make.pod("other", node="big", text=make.plan(1))
    await ready.cluster.tell(POD, "ADDED", bound)
    assert (await ask(ready, "filter", make.pod(text=plan), "big"))["NodeNames"] == []
    await ready.cluster.tell(POD, "DELETED", bound)
    assert (await ask(ready, "filter", make.pod(text=plan), "big"))["NodeNames"] == ["big"]
    await ready.cluster.tell(GPUNODEPROFILE, "DELETED", {"metadata": {"name": "big"}})
    assert (await ask(ready, "filter", make.pod(text=plan), "big"))["NodeNames"] == []


async def test_filter_decides_the_same_however_often_it_is_asked(ready, make):
    question = make.pod(text=make.plan(4))
    answers = await asyncio.gather(*(ask(ready, "filter", question, "big", "small") for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)


async def test_prioritize_answers_a_bare_array(ready, make):
    ranked = await ask(ready, "prioritize", make.pod(text=make.plan(2)), "small", "big")
    assert [entry["Host"] for entry in ranked] == ["small", "big"]
    assert 0 < ranked[0]["Score"] <= 10
    assert await ask(ready, "prioritize", make.pod(), "big") == [{"Host": "big", "Score": 0}]


@pytest.mark.parametrize("verb", ["filter", "prioritize"])
async def test_bad_json_is_400_with_the_reason(extender, verb):
    async with extender.client.post(f"/{verb}", data=b"{") as response:
        assert response.status == 400
        assert "not JSON" in await response.text()


async def test_a_huge_body_is_413(extender):
    async with extender.client.post("/filter", data=b" " * 1001) as response:
        assert response.status == 413


async def test_a_body_that_never_arrives_is_408(extender):
    reader, writer = await asyncio.open_connection("127.0.0.1", extender.port)
    writer.write(b"POST /filter HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
    assert b" 408 " in await reader.readline()
    writer.close()


async def test_liveness_and_readiness_are_separate_probes(ready):
    for path, status in (("/healthz", 200), ("/readyz", 200)):
        async with ready.client.get(path) as response:
            assert response.status == status
    ready.clock.now += 60
    for path, status in (("/healthz", 200), ("/readyz", 503)):
        async with ready.client.get(path) as response:
            assert response.status == status


async def test_every_other_path_and_method_is_refused(extender):
    async with extender.client.get("/filter") as response:
        assert response.status == 405
    async with extender.client.post("/bind", json={}) as response:
        assert response.status == 404


async def test_an_address_that_is_taken_ends_the_process_with_a_sentence(extender, make, tmp_path):
    kubeconfig = tmp_path / "kubeconfig"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
    }
    kubeconfig.write_text(json.dumps(document))
    with pytest.raises(CannotBeDone, match=r"extender: cannot listen on .*; choose another port"):
        await process.serve(
            process.ExtenderOptions(("127.0.0.1", extender.port), kubeconfig=str(kubeconfig)), make.refusal_on()
        )


async def test_calls_and_refusals_are_counted_by_reason(ready, make):
    def value(name, **labels):
        return ready.metrics.registry.get_sample_value(name, labels)

    await ask(ready, "filter", make.pod(text=make.plan(2)), "big", "small", "unknown")
    await ask(ready, "filter", make.pod(text=make.plan(9)), "big")
    await ask(ready, "filter", make.pod(), "big")
    await ask(ready, "prioritize", make.pod(text=make.plan(2)), "big")
    assert value("uellm_extender_request_seconds_count", verb="filter") == 2
    assert value("uellm_extender_request_seconds_count", verb="prioritize") == 1
    assert value("uellm_extender_refusals_total", reason="NoProfile") == 1
    assert value("uellm_extender_refusals_total", reason="TooFewFree") == 1
    assert value("uellm_extender_unplaceable_pods_total") == 1
    ready.clock.now += 3600
    await ask(ready, "filter", make.pod(text=make.plan(2)), "big")
    assert value("uellm_extender_refusals_total", reason="Stale") == 1
