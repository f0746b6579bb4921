"""A response in the background is in flight until the engine says that it ended, though its answer came at once."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from helpers.fake_engine import FakeEngine
from uellm.sidecar.engine.connection import EngineHealth

RESPONSES = "/v1/responses"
ASKED = json.dumps({"model": "tiny", "input": "hello", "background": True}).encode()
STREAMED = json.dumps({"model": "tiny", "input": "hello", "background": True, "stream": True}).encode()
KEY = {"Authorization": "Bearer of-the-engine"}


class Storing:
    """Answers as vLLM does with its store of responses."""

    def __init__(self, engine: FakeEngine) -> None:
        self.state: dict[str, str] = {}
        self.polls: list[str | None] = []
        self.engine = engine
        engine.script = self.script

    async def script(self, request: web.Request, received) -> web.StreamResponse:
        if request.method == "GET":
            self.polls.append(request.headers.get("Authorization"))
            return self.answer(request.path.rsplit("/", 1)[1])
        asked = json.loads(received.body)
        name = f"resp_{len(self.state)}"
        self.state[name] = "queued" if asked.get("background") else "completed"
        if not asked.get("stream"):
            return self.answer(name)
        event = json.dumps({"response": {"id": name}, "type": "response.created"}, separators=(",", ":"))
        text = f"event: response.created\ndata: {event}\n\n".encode()
        return await FakeEngine.stream(text, hold=True)(request, received)

    def answer(self, name: str) -> web.Response:
        if name not in self.state:
            return web.json_response({"error": {"message": "not found"}}, status=404)
        usage = {"input_tokens": 3, "output_tokens": 40} if self.state[name] == "completed" else None
        return web.json_response({"id": name, "status": self.state[name], "usage": usage})


@pytest.fixture
def storing(engine) -> Storing:
    return Storing(engine)


async def ask(harness, body: bytes = ASKED) -> None:
    async with harness.post(body, path=RESPONSES, **KEY) as response:
        assert response.status == 200
        assert (await response.json())["status"] == json.loads(body).get("status", "queued")


@pytest.fixture
async def followed(launch, storing):
    harness = await launch({"classes": [], "engine": {"maxNumSeqs": 8}})
    harness.sidecar.proxy.background.poll_s = 0.01
    harness.sidecar.proxy.background.fetch_s = 0.5
    return harness


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "incomplete"])
async def test_it_counts_until_the_engine_says_that_it_ended(followed, storing, eventually, end) -> None:
    await ask(followed)
    await ask(followed)
    dispatcher, drain = followed.sidecar.dispatcher, followed.sidecar.drain
    await eventually(lambda: len(storing.polls) >= 4)
    assert (dispatcher.in_flight, drain.active) == (2, 2)
    storing.state["resp_0"] = end
    await eventually(lambda: dispatcher.in_flight == 1)
    storing.state["resp_1"] = "in_progress"
    polls = len(storing.polls)
    await eventually(lambda: len(storing.polls) >= polls + 3)
    assert (dispatcher.in_flight, drain.active) == (1, 1)
    storing.state["resp_1"] = end
    await eventually(lambda: not drain.active)
    assert dispatcher.in_flight == 0
    assert set(storing.polls) == {KEY["Authorization"]}


async def test_a_drain_waits_for_it(followed, storing, eventually) -> None:
    await ask(followed)

    async def drained() -> dict[str, object]:
        async with followed.drain() as response:
            return await response.json()

    draining = asyncio.create_task(drained())
    await eventually(lambda: followed.sidecar.drain.refusing)
    polls = len(storing.polls)
    await eventually(lambda: len(storing.polls) >= polls + 3)
    assert not draining.done()
    ended_s = asyncio.get_running_loop().time()
    storing.state["resp_0"] = "completed"
    await eventually(lambda: not followed.sidecar.dispatcher.in_flight)
    async with followed.client.get(followed.url(f"{RESPONSES}/resp_0")) as response:
        assert (response.status, (await response.json())["status"]) == (200, "completed"), "its client can fetch it"
    async with followed.post(ASKED, path=RESPONSES) as response:
        assert response.status == 503
    assert (await draining)["drained"] is True
    assert asyncio.get_running_loop().time() - ended_s >= followed.sidecar.proxy.background.fetch_s - 0.01


async def test_an_answer_in_the_foreground_ends_with_itself(followed, storing) -> None:
    body = json.dumps({"model": "tiny", "input": "hello", "status": "completed"}).encode()
    await ask(followed, body)
    assert (followed.sidecar.dispatcher.in_flight, len(followed.sidecar.proxy.background)) == (0, 0)
    assert not storing.polls


async def test_a_stream_whose_client_leaves_goes_on_in_the_background(followed, storing, eventually) -> None:
    async with followed.post(STREAMED, path=RESPONSES) as response:
        await response.content.readuntil(b"\n\n")
    await eventually(lambda: storing.polls)
    assert followed.sidecar.dispatcher.in_flight == 1
    storing.state["resp_0"] = "completed"
    await eventually(lambda: not followed.sidecar.drain.active)


async def test_a_stream_that_was_read_to_its_end_is_not_followed(followed, storing, engine) -> None:
    async with followed.post(STREAMED, path=RESPONSES) as response:
        await response.content.readuntil(b"\n\n")
        engine.received[-1].go_on.set()
        await response.read()
    assert (len(followed.sidecar.proxy.background), storing.polls) == (0, [])


async def test_it_ends_with_the_engine_that_had_it(followed, storing, engine, eventually) -> None:
    await ask(followed)
    await engine.stop()
    await eventually(lambda: followed.sidecar.engine.health is EngineHealth.GONE)
    await eventually(lambda: not followed.sidecar.drain.active)
    assert followed.sidecar.dispatcher.in_flight == 0


async def test_an_engine_that_forgot_it_has_ended_it(followed, storing, eventually) -> None:
    await ask(followed)
    storing.state.clear()
    await eventually(lambda: not followed.sidecar.drain.active)


async def test_one_that_never_ends_counts_for_a_bounded_time(followed, storing, eventually) -> None:
    followed.sidecar.proxy.background.most_s = 0.1
    await ask(followed)
    await eventually(lambda: not followed.sidecar.drain.active)
    assert storing.state == {"resp_0": "queued"}


async def test_an_answer_in_the_background_is_not_judged_by_its_targets(launch, storing) -> None:
    harness = await launch({"classes": [{"name": "agents", "ttft": "1s", "e2e": "60s"}]})
    await ask(harness)
    async with harness.client.get(harness.management("/metrics")) as response:
        lines = (await response.text()).splitlines()
    assert 'uellm_slo_unjudged_total{class="agents"} 1' in lines
