"""A request of many conversations on real sockets: it cannot be split, and takes the room of all of them."""

from __future__ import annotations

import json

import pytest

CLASSES = {"model": "m", "classes": [{"name": "batch", "e2e": "600s"}]}
KV_TOKENS = 32_000
ENGINE = f"""\
vllm:num_requests_running{{engine="0"}} 0.0
vllm:num_requests_waiting{{engine="0"}} 0.0
vllm:kv_cache_usage_perc{{engine="0"}} 0.0
vllm:cache_config_info{{block_size="16",num_gpu_blocks="{KV_TOKENS // 16}"}} 1.0
"""
PATHS = ("/v1/chat/completions/batch", "/inference/v1/generate")


def of_tokens(path: str, tokens: int) -> bytes:
    if path.endswith("generate"):
        return json.dumps({"token_ids": [7] * tokens, "sampling_params": {"max_tokens": 16}}).encode()
    turns = [{"role": "user", "content": "x" * 4000}]
    return json.dumps({"messages": [turns] * (tokens // 1000), "max_tokens": 16}).encode()


@pytest.mark.parametrize("path", PATHS)
async def test_it_waits_until_the_cache_has_room_for_all_of_it(engine, launch, eventually, path) -> None:
    engine.metrics, engine.script = ENGINE, engine.on_word
    harness = await launch(CLASSES, figures_poll_s=0.02)
    await eventually(lambda: harness.sidecar.monitor.state().kv_tokens == KV_TOKENS)
    running = harness.ask(of_tokens(PATHS[1], 15_000), path=PATHS[1])
    received = await engine.arrivals.get()
    many = harness.ask(of_tokens(path, 20_000), path=path)
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    assert len([each for each in engine.received if each.method == "POST"]) == 1
    received.go_on.set()
    assert (await running)[0] == 200
    received = await engine.arrivals.get()
    assert received.body == of_tokens(path, 20_000)
    received.go_on.set()
    assert (await many)[0] == 200
