"""A complete answer of one token that is passed on unchanged is counted like any other, and its place is freed."""

from __future__ import annotations

import json

import pytest
from aiohttp import web

from uellm.sidecar.scheduling import EngineState, Options, Scheduler, State, Targets, Ticket

USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
CHAT = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "length"}],
    "usage": USAGE,
}
MESSAGES = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
CASES = {
    "first chat": ("/v1/chat/completions", MESSAGES, CHAT),
    "tools": ("/v1/chat/completions", MESSAGES | {"tools": TOOLS}, CHAT),
    "JSON": ("/v1/chat/completions", MESSAGES | {"response_format": {"type": "json_object"}}, CHAT),
    "echo": (
        "/v1/completions",
        {"prompt": "x", "max_tokens": 1, "echo": True},
        {"object": "text_completion", "choices": [{"index": 0, "text": "xa"}], "usage": USAGE},
    ),
    "responses": (
        "/v1/responses",
        {"input": "x", "max_output_tokens": 1},
        {"object": "response", "output": [], "usage": {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4}},
    ),
    "messages": (
        "/v1/messages",
        MESSAGES,
        {"type": "message", "content": [], "usage": {"input_tokens": 3, "output_tokens": 1}},
    ),
}


@pytest.mark.parametrize(("path", "body", "answer"), CASES.values(), ids=CASES)
async def test_a_whole_answer_of_one_token_completes_and_gives_its_place_back(engine, harness, path, body, answer):
    async def whole(request, received):
        return web.json_response(answer)

    engine.script = whole
    for number in (1, 2):
        async with harness.post(json.dumps({"model": "tiny"} | body).encode(), path=path) as response:
            assert (response.status, await response.json()) == (200, answer)
        assert harness.outcomes() == {"completed": number}
        assert harness.sidecar.dispatcher.in_flight == 0
        assert harness.sidecar.figures.tokens.value("interactive") == number


async def test_steps_are_measured_after_an_answer_of_one_token(engine, harness):
    test = test_a_whole_answer_of_one_token_completes_and_gives_its_place_back
    path, body, answer = CASES["messages"]
    await test(engine, harness, path, body, answer)
    engine.script = engine.stream(*(b'data: {"id":"c","choices":[]}\n\n' for _ in range(5)), b"data: [DONE]\n\n")
    core = harness.sidecar.dispatcher._core
    observed = core.step.observed
    for _ in range(50):  # events that are read at once show no gap
        async with harness.post(b'{"model": "tiny", "messages": [], "stream": true}') as response:
            await response.read()
        if core.step.observed > observed:
            break
    assert core.step.observed > observed


def test_tokens_that_were_already_counted_change_nothing():
    core, ticket = Scheduler(), Ticket(Targets("chat"), 0.0, prompt_tokens=10)
    core.on_engine_state(EngineState(ready=True), 0.0)
    core.submit(ticket, 0.0)
    assert core.dispatchable(0.0) == [ticket]
    core.on_first_token(ticket, 1.0)
    core._view.on_tokens(ticket, 1, 2.0)
    core.on_finish(ticket, 3.0, 1)
    assert (ticket.state, core.in_flight, core._view.kv_tokens) == (State.DONE, 0, 0)


def test_the_gate_of_a_restarted_scheduler_counts_what_the_engine_has_then():
    core = Scheduler(Options(max_in_flight=10))
    core.on_engine_state(EngineState(ready=True, max_num_batched_tokens=100), 0.0)
    first, second = (Ticket(Targets("chat"), 0.0, prompt_tokens=500) for _ in range(2))
    core.submit(first, 0.0)
    assert core.dispatchable(0.0) == [first]
    core.submit(second, 0.0)
    assert core.dispatchable(0.0) == []  # the engine has five steps of prompts
    core.restart(core.options, queued=[second], running=[], now_s=0.0)
    assert core.dispatchable(0.0) == [second]
