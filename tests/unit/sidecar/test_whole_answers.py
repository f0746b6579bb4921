"""Answers that come whole: the scheduler learns nothing from what it does not see, and holds nobody back for it."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from uellm.sidecar.scheduling import Shows
from uellm.sidecar.scheduling.unseen import Unseen

TOOLS = {"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function", "function": {"name": "f"}}]}
USAGE = {"prompt_tokens": 9, "completion_tokens": 200, "total_tokens": 209}
ANSWER = {"id": "x", "object": "chat.completion", "model": "m", "choices": [], "usage": USAGE}
SENT = [
    ("/v1/chat/completions", TOOLS, Shows.END),
    ("/v1/chat/completions", TOOLS | {"stream": True}, Shows.TOKENS),
    ("/v1/messages", {"messages": TOOLS["messages"], "max_tokens": 5}, Shows.END),
    ("/v1/responses", {"input": "hi"}, Shows.END),
    ("/v1/completions", {"prompt": "hi", "stream": True}, Shows.TOKENS),
    ("/v1/embeddings", {"input": "hi"}, Shows.PROMPT),
    ("/rerank", {"query": "hi", "documents": ["a"]}, Shows.PROMPT),
]


@pytest.mark.parametrize(("path", "body", "shows"), SENT)
async def test_what_an_answer_shows_follows_from_its_request(engine, harness, path, body, shows):
    engine.script = engine.on_word
    asked = harness.ask(json.dumps({"model": "m"} | body).encode(), path=path)
    received = await engine.arrivals.get()
    assert [ticket.shows for ticket in harness.sidecar.dispatcher._tickets] == [shows]
    received.go_on.set()
    await asked


async def test_ends_alone_teach_no_step_times_and_free_every_place(engine, harness):
    async def script(request, received):
        return web.json_response(ANSWER)

    engine.script = script
    body = json.dumps({"model": "m"} | TOOLS).encode()
    for _ in range(3):
        assert {status for status, _ in await asyncio.gather(*[harness.ask(body) for _ in range(20)])} == {200}
    dispatcher = harness.sidecar.dispatcher
    assert dispatcher.measured_steps().observed == 0
    view = dispatcher._core._view
    assert (dispatcher.in_flight, view.unfilled_tokens, view.decoding, view.unseen.in_flight) == (0, 0, 0, 0)


async def test_an_embedding_shows_how_long_its_prompt_took(engine, harness):
    async def script(request, received):
        await asyncio.sleep(0.005)  # it computes
        return web.json_response({"data": [], "usage": {"prompt_tokens": 9, "total_tokens": 9}})

    engine.script = script
    for _ in range(3):
        assert (await harness.ask(b'{"model": "m", "input": "hello"}', path="/v1/embeddings"))[0] == 200
    assert harness.sidecar.dispatcher._core.step.observed > 0


class Sent:
    """As much of a ticket as counts here."""

    shows, filled, sequences = Shows.END, False, 1

    def __init__(self, tokens: int, sequences: int = 1) -> None:
        self.uncached_tokens, self.sequences = tokens, sequences


@pytest.mark.parametrize(
    ("running", "computed", "begun_tokens"),
    [
        (0, [], 0),
        (1, [], 100),
        (3, [], 500),
        (4, [0], 600),
        (5, [0, 1, 2, 3], 2000),
        (6, [0, 1, 2, 3], 2000),
        (7, [0, 1, 2, 3, 4], 50),
        (99, [0, 1, 2, 3, 4], 50),
    ],
)
def test_of_the_requests_that_run_the_newest_may_be_unfinished_as_far_as_they_fit_into_a_step(
    running, computed, begun_tokens
):
    unseen = Unseen()
    tickets = [Sent(100), Sent(200), Sent(200), Sent(200), Sent(2000), Sent(50, sequences=2)]
    for ticket in tickets:
        unseen.on_dispatch(ticket)
    found, tokens = unseen.of_first(tickets, running, 600)
    assert ([tickets.index(ticket) for ticket in found], tokens) == (computed, begun_tokens)
