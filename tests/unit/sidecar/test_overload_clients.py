"""The official clients with their default retries, against a sidecar that refuses: on real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest
from aiohttp import web

from uellm.sidecar.request import retry_after

CLASSES = [{"name": "chat"}, {"name": "strict", "ttft": "50ms", "onDeadline": "Reject"}]
COMPLETION = {
    "id": "c",
    "object": "text_completion",
    "created": 1,
    "model": "tiny",
    "choices": [{"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "tiny",
    "content": [{"type": "text", "text": "a"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 4},
}


def document(*, places: int, bound: int) -> dict[str, Any]:
    return {"classes": CLASSES, "engine": {"maxNumSeqs": places}, "scheduling": {"maxQueuedRequests": bound}}


class Places:
    """An engine script with a number of concurrent answers, each of a given duration. It counts the concurrent ones."""

    def __init__(self, service_s: float) -> None:
        self.service_s = service_s
        self.done = 0

    async def __call__(self, request: web.Request, received: Any) -> web.StreamResponse:
        await asyncio.sleep(self.service_s)
        self.done += 1
        return web.json_response(MESSAGE if request.path == "/v1/messages" else COMPLETION)


def official(harness: Any) -> tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic]:
    base = f"http://127.0.0.1:{harness.sidecar.port}"
    return (
        openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none"),
        anthropic.AsyncAnthropic(base_url=base, api_key="none"),
    )


def complete(client: openai.AsyncOpenAI, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.completions.create(model="tiny", prompt="x", max_tokens=4, extra_headers=named)


def message(client: anthropic.AsyncAnthropic, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    asked: Any = [{"role": "user", "content": "x"}]
    return client.messages.create(model="tiny", messages=asked, max_tokens=4, extra_headers=named)


async def test_default_retries_answer_nine_in_ten_of_a_burst_of_five_times_the_queue(engine, launch):
    harness = await launch(document(places=4, bound=8))
    engine.script = Places(0.05)
    client, _ = official(harness)
    await asyncio.gather(*(complete(client) for _ in range(12)))  # the rate is known from now on
    before = len(engine.received)
    answers = await asyncio.gather(*(complete(client) for _ in range(40)), return_exceptions=True)
    # A machine that stalls meanwhile makes the told time too short for a few.
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(failed) <= 4
    assert {type(error) for error in failed} <= {openai.RateLimitError}
    assert len(engine.received) - before == 40 - len(failed)
    counted = harness.outcomes()
    assert counted.pop("completed") == 52 - len(failed)
    assert counted.pop("queue_full") <= 80 + len(failed)
    assert counted == {}
    assert harness.sidecar.dispatcher.in_flight == 0


@pytest.mark.parametrize("ask", [complete, message])
async def test_both_clients_wait_the_milliseconds_that_a_full_queue_answers(
    engine, launch, eventually, monkeypatch, ask
):
    monkeypatch.setattr(retry_after, "UNKNOWN_S", (0.4, 0.45))
    harness = await launch(document(places=1, bound=1))
    engine.script = engine.on_word
    client = official(harness)[0 if ask is complete else 1]
    waiting = [harness.ask(b'{"prompt": "x"}')]
    running = await engine.arrivals.get()
    waiting.append(harness.ask(b'{"prompt": "x"}'))
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    asked_s = asyncio.get_running_loop().time()
    asked = asyncio.create_task(ask(client))
    await eventually(lambda: harness.outcomes().get("queue_full") == 1)
    engine.script = Places(0.0)
    running.go_on.set()
    (await engine.arrivals.get()).go_on.set()
    await asyncio.gather(*waiting)
    answer = await asked
    assert answer.usage is not None
    assert 0.39 <= asyncio.get_running_loop().time() - asked_s < 5.0
    assert harness.outcomes() == {"queue_full": 1, "completed": 3}


@pytest.mark.parametrize(("ask", "error"), [(complete, openai.APIStatusError), (message, anthropic.APIStatusError)])
async def test_a_passed_deadline_is_not_sent_again(engine, launch, ask, error):
    harness = await launch(document(places=1, bound=8))
    engine.script = engine.on_word
    waiting = harness.ask(b'{"prompt": "x"}')
    running = await engine.arrivals.get()
    client = official(harness)[0 if ask is complete else 1]
    with pytest.raises(error) as late:
        await ask(client, x_slo_class="strict")
    assert late.value.status_code == 504
    assert late.value.response.headers["x-should-retry"] == "false"
    assert harness.outcomes() == {"deadline_passed": 1}
    running.go_on.set()
    await waiting


async def test_a_lower_class_waits_for_a_higher_one_but_not_the_other_way_round(engine, launch, eventually):
    classes = [{"name": "high", "priority": 10}, {"name": "low"}]
    harness = await launch(document(places=1, bound=40) | {"classes": classes})
    engine.script = Places(0.02)
    await asyncio.gather(*(harness.ask(b'{"prompt": "x"}', x_slo_class="high") for _ in range(20)))
    engine.script = engine.on_word
    waiting = [harness.ask(b'{"prompt": "x"}', x_slo_class=name) for name in ["low"] * 41]
    await engine.arrivals.get()
    await eventually(lambda: harness.sidecar.dispatcher.queued == 40)
    told = {}
    for name in ("high", "low"):
        async with harness.post(b"{}", x_slo_class=name) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == str(-(-int(response.headers["retry-after-ms"]) // 1000))
            told[name] = int(response.headers["retry-after-ms"])
    assert told["high"] < told["low"]
    for task in waiting:
        task.cancel()


async def test_an_unavailable_engine_is_reported_with_the_time_to_retry(engine, harness):
    await engine.stop()
    async with harness.client.get(harness.url("/v1/models")) as response:
        assert response.status == 503
        assert 5000 <= int(response.headers["retry-after-ms"]) <= 15000


async def test_a_replica_that_stops_sends_its_clients_to_another_one_at_once(harness):
    harness.sidecar.proxy.drain.begin()
    async with harness.post() as response:
        assert (response.status, (await response.json())["error"]["code"]) == (503, "draining")
        assert 100 <= int(response.headers["retry-after-ms"]) <= 1000
        assert response.headers["Retry-After"] == "1"


async def test_full_body_memory_is_refused_with_the_queues_retry_time(engine, launch, eventually):
    harness = await launch(document(places=1, bound=8))
    engine.script = engine.on_word
    harness.sidecar.proxy.bodies.held_bytes = harness.sidecar.proxy.bodies.limit_bytes
    async with harness.post(json.dumps({"prompt": "x" * 100}).encode()) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (429, "queue_full")
        assert int(response.headers["retry-after-ms"]) >= 250
    harness.sidecar.proxy.bodies.held_bytes = 0
