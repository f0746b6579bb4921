"""Embeddings, ranks and transcripts on real sockets: in the queue like any request, and returned byte for byte."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

CLASSES = [{"name": "index", "e2e": "600s"}, {"name": "query", "e2e": "30s"}]
ONE_AT_A_TIME = {"model": "m", "classes": CLASSES, "engine": {"maxNumSeqs": 1, "task": "Embed"}}
ANSWER = b'{"id":"e","data":[ {"embedding":[0.1,1e-05]}],"usage":{"prompt_tokens":9,"completion_tokens":0}}'
ROUTES = (
    *("/v1/embeddings", "/v2/embed", "/pooling", "/classify"),
    *("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
)


@pytest.fixture
async def embedder(engine, launch):
    async def script(request, received):
        return web.Response(body=ANSWER, content_type="application/json")

    engine.script = script
    return await launch(ONE_AT_A_TIME)


@pytest.mark.parametrize("path", ROUTES)
async def test_an_answer_comes_back_byte_for_byte_and_is_judged_as_a_whole(engine, embedder, path):
    sent = b'{"model": "m",  "input": ["a b", "c"]}'
    async with embedder.post(sent, path=path) as response:
        assert (response.status, await response.read()) == (200, ANSWER)
    assert engine.received[-1].body == sent
    assert embedder.outcomes() == {"completed": 1}
    async with embedder.client.get(embedder.management("/metrics")) as response:
        lines = (await response.text()).splitlines()
    assert 'uellm_ttft_seconds_count{class="index"} 1' in lines
    assert 'uellm_prompt_tokens_total{class="index"} 9' in lines
    assert not [line for line in lines if line.startswith("uellm_tpot_seconds_count") and not line.endswith(" 0")]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/rerank"])
async def test_a_query_passes_the_batches_that_wait(engine, launch, eventually, path):
    engine.script = engine.on_word
    harness = await launch(ONE_AT_A_TIME)
    bodies = [json.dumps({"input": [f"text {number}"] * 200}).encode() for number in range(3)]
    asked = []
    for number, body in enumerate(bodies):
        asked.append(harness.ask(body, path=path, x_slo_class="index"))
        await eventually(lambda seen=number: len(engine.received) + harness.sidecar.dispatcher.queued == seen + 1)
    urgent = b'{"input": "query"}'
    asked.append(harness.ask(urgent, path=path, x_slo_class="query"))
    await eventually(lambda: harness.sidecar.dispatcher.queued == 3)
    order = []
    for _ in asked:
        received = await engine.arrivals.get()
        order.append(received.body)
        received.go_on.set()
    assert {status for status, _ in await asyncio.gather(*asked)} == {200}
    assert order == [bodies[0], urgent, *bodies[1:]]


async def test_an_error_of_the_engine_is_passed_on_unchanged(engine, launch):
    async def script(request, received):
        return web.Response(status=400, body=b'{"error": {"message": "too long"} }', content_type="application/json")

    engine.script = script
    harness = await launch(ONE_AT_A_TIME)
    for sent in (b'{"input": []}', b'{"input": ""}', b"{", b""):
        async with harness.post(sent, path="/v1/embeddings") as response:
            assert (response.status, await response.read()) == (400, b'{"error": {"message": "too long"} }')
    assert [received.body for received in engine.received] == [b'{"input": []}', b'{"input": ""}', b"{", b""]
    assert harness.sidecar.dispatcher.in_flight == 0


async def test_a_form_with_speech_is_sent_as_it_came(engine, launch):
    harness = await launch({**ONE_AT_A_TIME, "engine": {"maxNumSeqs": 1, "task": "Transcribe"}})
    sent = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nRIFF\0\xff\r\n--b--\r\n'
    url = harness.url("/v1/audio/transcriptions")
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    async with harness.client.post(url, data=sent, headers=headers) as response:
        assert (response.status, await response.read()) == (200, sent)
    assert engine.received[-1].headers["Content-Type"] == headers["Content-Type"]
    assert harness.outcomes() == {"completed": 1}
