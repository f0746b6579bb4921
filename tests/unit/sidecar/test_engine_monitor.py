"""The sidecar follows the engine's metrics, and detects an engine that hangs although it reports that it is healthy."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from uellm.sidecar.engine import liveness, monitor
from uellm.sidecar.engine.connection import EngineHealth

FIGURES = """\
vllm:num_requests_running{{engine="0"}} {running}
vllm:num_requests_waiting{{engine="0"}} 0.0
vllm:kv_cache_usage_perc{{engine="0"}} 0.5
vllm:generation_tokens_total{{engine="0"}} {tokens}
vllm:prompt_tokens_total{{engine="0"}} 100.0
vllm:prompt_tokens_cached_total{{engine="0"}} 64.0
vllm:cache_config_info{{block_size="16",num_gpu_blocks="100"}} 1.0
"""


@pytest.fixture
def telling(engine, launch, eventually):
    """A sidecar whose engine has reported its metrics."""

    async def start(**options):
        engine.metrics = FIGURES.format(running=0, tokens=1)
        harness = await launch(figures_poll_s=0.01, **options)
        await eventually(lambda: harness.sidecar.monitor.metrics is not None)
        return harness

    return start


async def test_the_scheduler_knows_how_full_the_engine_is(engine, telling, eventually):
    harness = await telling()
    engine.metrics = FIGURES.format(running=3, tokens=5)
    await eventually(lambda: harness.sidecar.monitor.state().running == 3)
    state = harness.sidecar.monitor.state()
    assert (state.ready, state.kv_used_share, state.kv_tokens, state.block_tokens) == (True, 0.5, 1600, 16)
    assert (state.prompt_tokens, state.cached_tokens) == (100.0, 64.0)
    assert not state.stale


async def test_the_engine_is_asked_sooner_while_the_scheduler_needs_its_report(
    engine, telling, eventually, monkeypatch
):
    monkeypatch.setattr(monitor, "SOON_SHARE", 1e-6)
    harness = await telling()
    watching = harness.sidecar.monitor
    watching._poll_s, asked = 3600.0, False
    monkeypatch.setattr(watching, "_wants_report", lambda: asked)
    await asyncio.sleep(0.05)  # the sleep of before has ended
    engine.metrics = FIGURES.format(running=5, tokens=6)
    await asyncio.sleep(0.05)
    assert watching.metrics.running == 0
    task, asked = asyncio.create_task(watching.watch()), True
    await eventually(lambda: watching.metrics.running == 5)
    task.cancel()


async def test_old_figures_are_reported_as_stale(engine, telling, eventually, monkeypatch):
    harness = await telling()
    monkeypatch.setattr(monitor, "STALE_S", 0.05)
    engine.metrics = "no figures any more"
    await eventually(lambda: harness.sidecar.monitor.state().stale)


async def test_an_engines_start_options_come_from_the_configuration(telling):
    harness = await telling(
        document={"classes": [], "engine": {"maxNumSeqs": 7, "maxNumBatchedTokens": 512}},
    )
    state = harness.sidecar.monitor.state()
    assert (state.max_num_seqs, state.max_num_batched_tokens) == (7, 512)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(liveness, "STILL_S", 0.05)
    monkeypatch.setattr(liveness, "CANARY_S", 2.0)


@pytest.mark.usefixtures("impatient")
async def test_an_engine_that_hangs_but_reports_healthy_gets_a_canary_and_then_no_more_requests(
    engine, telling, eventually, monkeypatch
):
    monkeypatch.setattr(liveness, "CANARY_S", 0.1)
    engine.script = engine.on_word
    harness = await telling()
    asked = harness.ask(b'{"first": 1}')
    await eventually(lambda: harness.sidecar.engine.health is EngineHealth.UNHEALTHY)
    assert {received.path for received in engine.received} == {"/v1/chat/completions", "/v1/completions"}
    waiting = harness.ask(b'{"second": 2}')
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    async with harness.client.get(harness.management("/engine/live")) as response:
        assert response.status == 503
        # What the engine's parent, which answers the kubelet, looks for.
        assert (await response.json())["hanging"] is True
    # It recovers: tokens are produced, and waiting requests proceed.
    engine.script = engine.echo
    engine.metrics = FIGURES.format(running=1, tokens=2)
    for received in engine.received:
        received.go_on.set()
    await eventually(lambda: harness.sidecar.engine.ready)
    assert [status for status, _ in await asyncio.gather(asked, waiting)] == [200, 200]


@pytest.mark.usefixtures("impatient")
async def test_a_slow_engine_that_answers_its_canary_keeps_its_requests(engine, telling, eventually):
    harness = await telling()

    async def script(request: web.Request, received) -> web.Response:
        if request.path == "/v1/completions":
            return web.json_response({})
        await received.go_on.wait()
        return web.json_response({})

    engine.script = script
    asked = harness.ask()
    await eventually(lambda: sum(received.path == "/v1/completions" for received in engine.received) >= 3)
    assert harness.sidecar.engine.ready
    next(received for received in engine.received if received.path != "/v1/completions").go_on.set()
    assert (await asked)[0] == 200


@pytest.mark.usefixtures("impatient")
async def test_an_engine_without_metrics_never_counts_as_hanging(engine, launch, eventually):
    engine.metrics, engine.script = "up 1\n", engine.on_word
    harness = await launch(figures_poll_s=0.01)
    asked = harness.ask()
    received = await engine.arrivals.get()
    checks = engine.health_checks
    await eventually(lambda: engine.health_checks > checks + 20)
    assert harness.sidecar.engine.ready
    received.go_on.set()
    assert (await asked)[0] == 200


@pytest.mark.usefixtures("impatient")
async def test_an_engine_in_a_long_prompt_gets_no_canary_while_its_cache_fills(
    engine, telling, eventually, monkeypatch
):
    monkeypatch.setattr(liveness, "STILL_S", 0.5)
    engine.script = engine.on_word
    harness = await telling()
    looks = []

    async def metrics() -> str:
        looks.append(1)
        return FIGURES.format(running=1, tokens=1).replace("} 0.5", f"}} {0.5 + len(looks) * 1e-4}")

    monkeypatch.setattr(harness.sidecar.engine, "metrics", metrics)
    asked = harness.ask(b'{"messages": []}')
    received = await engine.arrivals.get()
    started_s = asyncio.get_running_loop().time()
    await eventually(lambda: asyncio.get_running_loop().time() > started_s + 1.0)
    assert harness.sidecar.engine.ready
    assert [each.path for each in engine.received] == ["/v1/chat/completions"]
    received.go_on.set()
    assert (await asked)[0] == 200


@pytest.mark.usefixtures("impatient")
async def test_a_canary_behind_a_long_prompt_waits_as_long_as_the_steps_take(engine, telling, eventually):
    engine.script = engine.on_word
    engine.models = {"data": [{"id": "m", "max_model_len": 100_000}]}
    steps = {"floor": 1e-3, "perPrefillToken": 1e-3, "perKvToken": 0.0, "perSequence": 0.0, "overhead": 1e-3}
    harness = await telling(document={"classes": [], "engine": {"stepSeconds": steps}})
    asked = harness.ask(json.dumps({"prompt": [1] * 10_000}).encode(), path="/v1/completions")
    await eventually(lambda: len(engine.received) == 2)
    assert harness.sidecar.monitor._liveness.patience_s == pytest.approx(40.0, rel=0.1)
    for received in engine.received:
        received.go_on.set()
    assert (await asked)[0] == 200


@pytest.mark.parametrize(
    ("models", "found"),
    [
        ({"data": [{"id": "m", "max_model_len": 4096}, {"id": "adapter", "max_model_len": None}]}, 4096),
        ({"data": [{"id": "m"}]}, None),
        ({"data": "none"}, None),
        ([], None),
        ({"data": [{"id": "m", "max_model_len": True}, {"max_model_len": -1}, 7]}, None),
    ],
)
async def test_the_length_of_the_models_context_is_read_from_the_engine(engine, launch, models, found):
    engine.models = models
    harness = await launch()
    assert harness.sidecar.monitor.state().max_model_len == found


async def test_a_new_engine_process_may_have_another_context(engine, launch, eventually):
    engine.models = {"data": [{"id": "m", "max_model_len": 4096}]}
    harness = await launch()
    await engine.stop()
    await eventually(lambda: not harness.sidecar.engine.ready)
    engine.models = {"data": [{"id": "m", "max_model_len": 8192}]}
    await engine.start()
    await eventually(lambda: harness.sidecar.engine.ready)
    assert harness.sidecar.monitor.state().max_model_len == 8192


async def test_a_prompt_that_is_too_long_for_the_model_gets_the_engines_answer_past_the_queue(
    engine, launch, eventually
):
    engine.models = {"data": [{"id": "m", "max_model_len": 1000}]}

    async def script(request: web.Request, received) -> web.Response:
        if len(received.body) > 8000:
            return web.json_response({"error": {"message": "the maximum context length is 1000"}}, status=400)
        await received.go_on.wait()
        return web.json_response({})

    engine.script = script
    harness = await launch({"classes": [], "engine": {"maxNumSeqs": 1}})
    running = harness.ask(b'{"messages": [], "first": 1}')
    await engine.arrivals.get()
    waiting = harness.ask(b'{"messages": [], "second": 2}')
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    for _ in range(3):
        status, answer = await harness.ask(json.dumps({"messages": [{"content": "a" * 9000}]}).encode())
        assert (status, b"maximum context" in answer) == (400, True)
    assert harness.sidecar.dispatcher.queued == 1
    engine.received[0].go_on.set()
    assert (await running)[0] == 200
    await eventually(lambda: engine.received[-1].body.endswith(b'"second": 2}'))
    engine.received[-1].go_on.set()
    assert (await waiting)[0] == 200


async def test_the_engines_count_of_a_prompt_counts_from_the_first_event_that_has_one(engine, launch, eventually):
    event = {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 777, "completion_tokens": 1}}
    first = {"choices": [{"delta": {"role": "assistant"}}], "usage": {"prompt_tokens": 777, "completion_tokens": 0}}
    pieces = [b"data: " + json.dumps(each, separators=(",", ":")).encode() + b"\n\n" for each in (first, event)]
    engine.script = engine.stream(*pieces, hold=True)
    harness = await launch()
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    asked = harness.ask(json.dumps(body).encode())
    await eventually(lambda: harness.sidecar.proxy.terms.ratio.template_tokens > 600)
    (ticket,) = harness.sidecar.dispatcher._tickets
    assert ticket.prompt_tokens == 777
    engine.received[0].go_on.set()
    await asked
