"""Reading and counting in the sidecar itself: what the engine gets, what the client gets, and what is reported."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FINGERPRINT = "vllm-0.32.0-d9a4"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
WORDS = ["one", " two", " three"]
STEP_S = 5e-3


def data(document: Any) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    return {**head, "choices": [choice], **fields}


def whole() -> dict[str, Any]:
    """vLLM's answer to `BODY` without a stream."""
    message = {"role": "assistant", "content": "".join(WORDS), "refusal": None, "reasoning": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    usage = {"prompt_tokens": 9, "total_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny"}
    return {**head, "choices": [choice], "system_fingerprint": FINGERPRINT, "usage": usage, "metrics": None}


class Vllm:
    """Answers chats like vLLM 0.32.0: `WORDS`, whole or as a stream, with usage if it is requested."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.after_first = asyncio.Event()
        self.after_first.set()
        self.dies = False
        self.rejects: dict[str, Any] | None = None

    async def __call__(self, request: web.Request, received: Any) -> web.StreamResponse:
        body = json.loads(received.body)
        self.asked.append(body)
        if not body.get("stream"):
            return web.Response(body=json.dumps(whole(), separators=(",", ":")), content_type="application/json")
        usage = (body.get("stream_options") or {}).get("include_usage")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for event in self.events(usage):
            await response.write(event)
            if b"one" in event:
                await self.after_first.wait()
                if self.dies:
                    request.transport.abort()
                    return response
        return response

    def events(self, usage: bool) -> list[bytes]:
        if self.rejects:
            return [data(self.rejects), b"data: [DONE]\n\n"]
        told = {} if usage else {"system_fingerprint": FINGERPRINT}
        events = [data(chunk({"role": "assistant", "content": ""}))]
        events += [data(chunk({"content": word})) for word in WORDS[:-1]]
        events.append(data(chunk({"content": WORDS[-1]}, "length", **told)))
        if usage:
            counts = {"prompt_tokens": 9, "total_tokens": 12, "completion_tokens": 3}
            end = chunk({}, usage=counts, system_fingerprint=FINGERPRINT)
            events.append(data({**end, "choices": []}))
        return [*events, b"data: [DONE]\n\n"]


@pytest.fixture
def vllm(engine) -> Vllm:
    engine.script = Vllm()
    return engine.script


def ask(harness: Any, **fields: Any) -> Any:
    return harness.ask(json.dumps({**BODY, **fields}).encode())


async def metric(harness: Any, line: str) -> str:
    async with harness.client.get(harness.management("/metrics")) as response:
        found = [each for each in (await response.text()).splitlines() if each.startswith(line + " ")]
    return found[0].rpartition(" ")[2] if found else "none"


async def test_the_second_whole_answer_was_a_stream_and_is_the_same_to_the_byte(vllm, harness):
    answers = [await ask(harness) for _ in range(3)]
    assert [bool(asked.get("stream")) for asked in vllm.asked] == [False, True, True]
    assert answers == [(200, json.dumps(whole(), separators=(",", ":")).encode())] * 3


async def test_an_assembled_answer_has_its_content_type_and_length(vllm, harness):
    await ask(harness)
    async with harness.post(json.dumps(BODY).encode()) as response:
        body = await response.read()
    assert len(vllm.asked) == 2
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers.getall("Content-Length") == [str(len(body))]
    assert "Transfer-Encoding" not in response.headers


async def test_a_restarted_engine_is_learned_again(engine, vllm, harness, eventually):
    await ask(harness)
    await engine.stop()
    await eventually(lambda: not harness.sidecar.engine.ready)
    await engine.start()
    await eventually(lambda: harness.sidecar.engine.ready)
    await ask(harness)
    await ask(harness)
    assert [bool(asked.get("stream")) for asked in vllm.asked] == [False, False, True]


async def test_a_stream_has_no_usage_for_a_client_that_did_not_ask_for_it(vllm, harness):
    for options, usage in ((None, False), ({"include_usage": True}, True)):
        status, body = await ask(harness, stream=True, stream_options=options)
        assert (status, body) == (200, b"".join(vllm.events(usage)))
    assert [asked["stream_options"]["include_usage"] for asked in vllm.asked] == [True, True]


async def test_tokens_are_counted_by_the_engines_own_usage(vllm, harness):
    for stream in (True, False, False):
        await ask(harness, stream=stream)
    assert await metric(harness, 'uellm_output_tokens_total{class="interactive"}') == "9"
    assert await metric(harness, 'uellm_prompt_tokens_total{class="interactive"}') == "27"
    assert await metric(harness, 'uellm_ttft_seconds_count{class="interactive"}') == "2"


async def test_a_rejection_within_a_stream_becomes_the_status_that_it_names(vllm, harness):
    await ask(harness)
    vllm.rejects = {"error": {"message": "too many", "type": "ServiceUnavailableError", "param": None, "code": 503}}
    status, body = await ask(harness)
    assert (status, json.loads(body)) == (503, vllm.rejects)
    assert harness.outcomes() == {"completed": 1, "failed_by_engine": 1}
    assert (await ask(harness, stream=True)) == (200, b"".join(vllm.events(True)))


async def test_losing_the_engine_before_the_answer_is_complete_is_a_503_without_a_partial_answer(vllm, harness):
    await ask(harness)
    vllm.dies = True
    status, body = await ask(harness)
    assert (status, json.loads(body)["error"]["code"]) == (503, "engine_lost")


async def test_an_invalid_stream_is_logged_once_and_streams_are_no_longer_assembled(engine, vllm, harness):
    await ask(harness)
    engine.script = engine.stream(b"data: {broken\n\n")
    assert (await ask(harness))[0] == 503
    engine.script = vllm
    assert (await ask(harness))[0] == 200
    assert not vllm.asked[-1].get("stream")


async def test_a_client_that_disconnects_while_its_answer_is_assembled_frees_the_engine(
    engine, vllm, harness, eventually
):
    await ask(harness)
    vllm.after_first.clear()
    asked = ask(harness)
    await eventually(lambda: len(vllm.asked) == 2)
    asked.cancel()
    async with asyncio.timeout(5):
        await engine.received[-1].left.wait()
    await eventually(lambda: harness.sidecar.dispatcher.in_flight == 0)
    assert harness.outcomes()["client_left"] == 1


async def test_a_fault_in_reading_costs_the_request_nothing(engine, vllm, harness, monkeypatch, caplog):
    monkeypatch.setattr("uellm.sidecar.request.proxy.read", lambda *_, **__: 1 / 0)
    assert (await ask(harness, stream=True)) == (200, b"".join(vllm.events(False)))
    assert json.loads(engine.received[0].body) == {**BODY, "stream": True}
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("method", ["predict", "observe"])
async def test_a_predictor_that_fails_costs_the_request_nothing(vllm, harness, monkeypatch, caplog, method):
    monkeypatch.setattr(harness.sidecar.lengths, method, lambda *_, **__: 1 / 0)
    assert (await ask(harness, stream=True)) == (200, b"".join(vllm.events(False)))
    assert harness.outcomes() == {"completed": 1}
    assert harness.sidecar.dispatcher.in_flight == 0
    assert "ZeroDivisionError" in caplog.text


async def test_headers_report_class_wait_and_predicted_length(vllm, harness):
    async with harness.post(json.dumps(BODY).encode(), x_slo_class="batch") as response:
        assert response.headers["x-uellm-class"] == "batch"
        assert response.headers["x-uellm-queue-ms"].isdecimal()
        assert response.headers["x-uellm-predicted-tokens"] == "3"  # the request's own limit
    async with harness.post(b'{"input": "x"}', path="/v1/embeddings") as response:
        assert "x-uellm-predicted-tokens" not in response.headers


async def test_lengths_are_learned_from_answers_that_ended(vllm, harness):
    for _ in range(8):
        await ask(harness, stream=True, max_tokens=None)
    async with harness.post(json.dumps({**BODY, "max_tokens": 500}).encode()) as response:
        assert int(response.headers["x-uellm-predicted-tokens"]) <= 4


async def test_the_predictor_can_be_switched_off(vllm, launch):
    harness = await launch({"classes": [], "scheduling": {"predictor": "Off"}})
    async with harness.post(json.dumps(BODY).encode()) as response:
        assert "x-uellm-predicted-tokens" not in response.headers


async def test_deadlines_become_priorities_for_an_engine_that_uses_them(engine, vllm, launch):
    classes = [{"name": "quick", "ttft": "1s"}, {"name": "slow", "ttft": "60s"}]
    harness = await launch({"classes": classes, "engine": {"acceptsPriority": True}})
    for name in ("slow", "quick"):
        async with harness.post(json.dumps(BODY).encode(), x_slo_class=name, x_vllm_priority="-5"):
            pass
    slow, quick = (asked["priority"] for asked in vllm.asked)
    assert 50_000 < slow - quick < 60_000
    assert [received.headers.getall("X-Vllm-Priority") for received in engine.received] == [[str(slow)], [str(quick)]]


async def test_attainment_is_reported_by_class(vllm, launch):
    classes = [{"name": "easy", "ttft": "60s", "e2e": "60s"}, {"name": "hard", "e2e": "1ms"}]
    harness = await launch({"classes": classes})
    vllm.after_first.clear()
    asked = [harness.ask(json.dumps({**BODY, "stream": True}).encode(), x_slo_class=name) for name in ("easy", "hard")]
    await asyncio.sleep(0.01)
    vllm.after_first.set()
    await asyncio.gather(*asked)
    async with harness.client.get(harness.management("/uellm/slo")) as response:
        document = await response.json()
    assert document["windowSeconds"] == 300
    easy, hard = document["classes"]
    assert (easy["name"], easy["requests"], easy["met"]) == ("easy", 1, 1)
    assert (hard["name"], hard["requests"], hard["met"]) == ("hard", 1, 0)
    assert easy["p99TtftSeconds"] > 0
    assert easy["p99TpotSeconds"] > 0
    assert await metric(harness, 'uellm_slo_met_total{class="easy"}') == "1"
    assert await metric(harness, 'uellm_slo_missed_total{class="hard",target="e2e"}') == "1"
    assert await metric(harness, 'uellm_good_output_tokens_total{class="easy"}') == "3"


@pytest.mark.parametrize("factors", [None, {"prefill": 2.0, "decode": 3.0}])
async def test_step_times_are_reported_where_they_were_predicted(vllm, launch, factors):
    seconds = {"floor": 1e-3, "perPrefillToken": 1e-6, "perKvToken": 0, "perSequence": 0, "overhead": 0}
    engine = {"stepSeconds": seconds, **({"stepFactors": factors} if factors else {})}
    harness = await launch({"classes": [], "engine": engine})
    assert "steps" not in await reported(harness)
    vllm.after_first.clear()
    async with harness.post(json.dumps({**BODY, "stream": True}).encode()) as response:
        await response.content.readuntil(b"one")
        # The loop's clock counts whole milliseconds, and no engine's step is shorter than that.
        await asyncio.sleep(STEP_S)
        vllm.after_first.set()
        await response.read()
    steps = (await reported(harness))["steps"]
    assert steps["observed"] >= 1
    assert steps["meanSeconds"] > 0
    expected = 3e-3 if factors else 1e-3
    assert steps["expectedSeconds"] == pytest.approx(expected, rel=0.01)
    assert 0.1 <= steps["decodeFactor"] <= 10
    assert steps["prefillFactor"] == pytest.approx(2.0 if factors else 1.0, rel=0.2)


async def test_step_times_that_nobody_predicted_are_not_reported(vllm, launch):
    harness = await launch({"classes": []})
    assert (await harness.ask(json.dumps({**BODY, "stream": True}).encode()))[0] == 200
    assert "steps" not in await reported(harness)


async def test_the_load_since_the_start_is_reported(vllm, launch):
    harness = await launch({"classes": [{"name": "easy", "e2e": "60s"}, {"name": "hard", "e2e": "1ms"}]})
    before = (await reported(harness))["load"]
    for name in ("easy", "hard"):
        await harness.ask(json.dumps({**BODY, "stream": True}).encode(), x_slo_class=name)
    load = (await reported(harness))["load"]
    assert before.pop("stepSeconds") is None
    assert set(before.values()) == {0}
    assert (load["ended"], load["running"], load["queued"]) == (2, 0, 0)
    assert load["missed"] == harness.sidecar.figures.missed.value("hard", "e2e")
    assert (load["answers"], load["outputTokens"]) == (2, 6)
    assert load["prompts"] == 2
    assert load["promptTokens"] > 0


async def reported(harness):
    async with harness.client.get(harness.management("/uellm/slo")) as response:
        return await response.json()


async def test_targets_in_headers_are_what_a_request_is_judged_by(engine, vllm, harness):
    async def after_a_while(request, received):
        await asyncio.sleep(0.01)  # the loop's clock counts milliseconds
        return await vllm(request, received)

    engine.script = after_a_while
    async with harness.post(json.dumps({**BODY, "stream": True}).encode(), x_llm_d_slo_ttft_ms="0.001") as response:
        await response.read()
    assert await metric(harness, 'uellm_slo_missed_total{class="interactive",target="ttft"}') == "1"
    async with harness.post(json.dumps(BODY).encode(), x_llm_d_slo_ttft_ms="soon") as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"].startswith("x-llm-d-slo-ttft-ms must be")


async def test_a_dropped_request_has_llm_ds_reason(engine, launch, eventually):
    document = {"classes": [], "scheduling": {"maxQueuedRequests": 1}, "engine": {"maxNumSeqs": 1}}
    harness = await launch(document)
    engine.script = engine.on_word
    first = harness.ask()
    running = await engine.arrivals.get()
    second = harness.ask()
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    async with harness.post() as response:
        assert response.status == 429
        assert response.headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"
        assert 1 <= int(response.headers["Retry-After"]) <= 60
    load = (await reported(harness))["load"]
    assert (load["ended"], load["prompts"], load["answers"]) == (1, 1, 0)
    assert load["promptTokens"] > 0
    running.go_on.set()
    (await engine.arrivals.get()).go_on.set()
    await asyncio.gather(first, second)


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"messages": [], "stream": True}, "identity"),
        ({"messages": [], "stream": True, "stream_options": {"include_usage": True}}, "gzip"),
        ({"messages": [], "tools": []}, "gzip"),
    ],
    ids=["usage is taken out", "as it is", "whole"],
)
async def test_only_an_answer_that_is_changed_on_its_way_may_not_be_compressed(engine, harness, body, asked):
    assert (await harness.ask(json.dumps(body).encode(), Accept_Encoding="gzip"))[0] == 200
    assert engine.received[-1].headers["Accept-Encoding"] == asked
