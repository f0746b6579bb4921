"""Whole answers that are put together here: most are reported by the engine in batches of tokens."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from uellm.sidecar.scheduling import EngineState, Options, Scheduler, State, Targets, Ticket
from uellm.sidecar.scheduling.engineview import MEASURING_ANSWERS
from uellm.sidecar.wire.aggregate import Aggregator
from uellm.sidecar.wire.call import BATCH_TOKENS
from uellm.sidecar.wire.shape import AnswerShapes
from uellm.vllm_routes import RouteKind

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "data" / "recorded-streams.json").read_text()
)
BODY = {"model": "tiny", "prompt": "Hello", "max_tokens": 40}
TOKENS = 40
COMPLETIONS = "/v1/completions"


def timeless(text: str) -> str:
    return re.sub(r'"created":\d+', '"created":0', text)


@pytest.mark.parametrize(
    ("batched", "whole", "kind"),
    [
        ("chat-batched", "whole-chat", RouteKind.CHAT),
        ("chat-logprobs-batched", "whole-chat-logprobs", RouteKind.CHAT),
        ("completions-batched", "whole-completion-logprobs", RouteKind.COMPLETIONS),
    ],
)
def test_an_answer_from_real_vllms_batches_equals_vllms_own(batched, whole, kind):
    own = RECORDED[whole]["chunks"][0]
    shapes = AnswerShapes()
    shapes.learn(kind, json.loads(own))
    shape = shapes.get(kind)
    assert shape is not None
    aggregator = Aggregator(kind, shape)
    for chunk in RECORDED[batched]["chunks"]:
        aggregator.feed(chunk.encode())
    status, body = aggregator.answer()
    assert (status, timeless(body.decode())) == (200, timeless(own))


class Vllm:
    """Answers completions of `TOKENS` tokens; a stream's last token waits for `go`."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.go = asyncio.Event()
        self.obeys = True

    async def __call__(self, request: web.Request, received: Any) -> web.StreamResponse:
        body = json.loads(received.body)
        self.asked.append(body)
        if not body.get("stream"):
            return web.Response(body=self._dumped(self._answer(), usage=TOKENS), content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        step = body.get("stream_interval", 1) if self.obeys else 1
        continuous = body["stream_options"].get("continuous_usage_stats")
        sent = 0
        for until in [*range(1, TOKENS, step), TOKENS]:
            if until == TOKENS:
                await self.go.wait()
            text = "".join(f" {number}" for number in range(sent, until))
            event = self._dumped(self._choice(text, until), usage=until if continuous else None)
            await response.write(b"data: " + event + b"\n\n")
            sent = until
        await response.write(b"data: " + self._dumped({"choices": []}, usage=TOKENS) + b"\n\ndata: [DONE]\n\n")
        return response

    @staticmethod
    def _choice(text: str, until: int) -> dict[str, Any]:
        reason = "length" if until == TOKENS else None
        return {"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": None}]}

    def _answer(self) -> dict[str, Any]:
        return self._choice("".join(f" {number}" for number in range(TOKENS)), TOKENS)

    @staticmethod
    def _dumped(document: dict[str, Any], usage: int | None) -> bytes:
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "tiny"}
        tail = {"usage": {"prompt_tokens": 2, "total_tokens": 2 + usage, "completion_tokens": usage}} if usage else {}
        return json.dumps({**head, **document, **tail}, separators=(",", ":")).encode()

    @property
    def intervals(self) -> list[int | None]:
        return [body.get("stream_interval") for body in self.asked]


@pytest.fixture
def vllm(engine) -> Vllm:
    engine.script = Vllm()
    return engine.script


def ask(harness: Any, **fields: Any) -> asyncio.Task[bytes]:
    async def run() -> bytes:
        async with harness.post(json.dumps({**BODY, **fields}).encode(), path=COMPLETIONS) as response:
            assert response.status == 200
            return await response.read()

    return asyncio.create_task(run())


async def test_two_whole_answers_measure_steps_and_the_others_come_in_batches(vllm, harness, eventually):
    own = await ask(harness)
    answers = [ask(harness) for _ in range(5)]
    await eventually(lambda: len(vllm.asked) == 6)
    assert vllm.intervals.count(BATCH_TOKENS) == 3 == vllm.intervals.count(None)
    [asked, *_] = [body for body in vllm.asked if "stream_interval" in body]
    assert asked["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    vllm.go.set()
    assert [await answer for answer in answers] == [own] * 5
    await eventually(lambda: harness.outcomes() == {"completed": 6})


async def test_the_scheduler_knows_the_tokens_of_an_answer_in_batches(vllm, harness, eventually):
    await ask(harness)
    answers = [ask(harness) for _ in range(3)]
    view = harness.sidecar.proxy._dispatcher._scheduler._view
    # All have 39 tokens but the one in batches, which has 33.
    await eventually(lambda: harness.sidecar.proxy._dispatcher._core and view.got_tokens == 39 + 39 + 33)
    vllm.go.set()
    await asyncio.gather(*answers)


async def test_an_older_engine_that_ignores_the_batches_is_asked_once(vllm, harness, eventually):
    vllm.obeys = False
    own = await ask(harness)
    for batched in (1, 0):
        vllm.go.clear()
        answers = [ask(harness) for _ in range(3)]
        before = len(vllm.asked)
        await eventually(lambda before=before: len(vllm.asked) == before + 3)
        vllm.go.set()
        assert [await answer for answer in answers] == [own] * 3
        assert sum(interval is not None for interval in vllm.intervals[before:]) == batched


async def test_several_choices_and_streams_come_token_by_token(vllm, harness, eventually):
    await ask(harness)
    answers = [ask(harness) for _ in range(2)]
    others = [ask(harness, n=2), ask(harness, stream=True)]
    await eventually(lambda: len(vllm.asked) == 5)
    assert vllm.intervals == [None] * 5
    vllm.go.set()
    await asyncio.gather(*answers, *others)


READY = EngineState(ready=True, max_num_seqs=256, max_num_batched_tokens=512)
STEP_S = 0.02


class Replay:
    """An engine that gives each running request a token a step, and reports batched ones as vLLM does."""

    def __init__(self) -> None:
        self.core = Scheduler(Options("SLO-ODBS"))
        self.core.on_engine_state(READY, 0.0)
        self.now_s = 0.0
        self.tokens: dict[Ticket, int] = {}

    def submit(self, *, may_batch: bool = True) -> Ticket:
        ticket = Ticket(Targets("none"), self.now_s, 10, may_batch=may_batch)
        self.core.submit(ticket, self.now_s)
        return ticket

    def step(self) -> None:
        for ticket in self.core.dispatchable(self.now_s):
            self.tokens[ticket] = 0
        self.now_s += STEP_S
        for ticket in self.tokens:
            self.tokens[ticket] += 1
            self.report(ticket)

    def report(self, ticket: Ticket) -> None:
        if not ticket.batched or self.tokens[ticket] % BATCH_TOKENS == 1:
            self.core.on_tokens(ticket, self.tokens[ticket], self.now_s)

    def end(self, ticket: Ticket) -> None:
        self.core.on_finish(ticket, self.now_s, self.tokens.pop(ticket, None))


def test_steps_are_measured_by_batches_alone_where_nothing_else_is_left():
    replay = Replay()
    tickets = [replay.submit() for _ in range(6)]
    replay.step()
    measuring = [ticket for ticket in tickets if not ticket.batched]
    assert len(measuring) == MEASURING_ANSWERS
    for ticket in measuring:
        replay.end(ticket)
    for _ in range(400):
        replay.step()
    assert replay.core.step.gap_s == pytest.approx(STEP_S, rel=0.1)


def test_the_next_answer_measures_when_one_that_did_has_ended():
    replay = Replay()
    tickets = [replay.submit() for _ in range(3)]
    replay.step()
    [batched] = [ticket for ticket in tickets if ticket.batched]
    replay.end(next(ticket for ticket in tickets if not ticket.batched))
    another = replay.submit()
    replay.step()
    assert (batched.batched, another.batched) == (True, False)


@given(st.lists(st.tuples(st.sampled_from(("submit", "stream", "step", "end", "abort", "again")), st.integers(0, 9))))
def test_after_any_events_the_answers_that_measure_are_counted_exactly(events):
    replay = Replay()
    tickets: list[Ticket] = []
    for what, number in events:
        running = [ticket for ticket in tickets if ticket.state is State.RUNNING]
        if what in ("submit", "stream"):
            tickets.append(replay.submit(may_batch=what == "submit"))
        elif what == "step":
            replay.step()
        elif running and what == "end":
            replay.end(running[number % len(running)])
        elif running and what == "abort":
            replay.tokens.pop(running[number % len(running)], None)
            replay.core.on_abort(running[number % len(running)], replay.now_s)
        elif running and what == "again":
            replay.tokens.pop(running[number % len(running)], None)
            replay.core.submit(running[number % len(running)], replay.now_s)
        measuring = [
            ticket for ticket in tickets if ticket.state is State.RUNNING and ticket.may_batch and not ticket.batched
        ]
        assert replay.core._view._measuring == len(measuring) <= MEASURING_ANSWERS
    assert replay.core.failure is None


class Speculating(Replay):
    """Gives each running request `each` tokens a step, in one event."""

    def __init__(self, each: int) -> None:
        super().__init__()
        self.each = each

    def report(self, ticket: Ticket) -> None:
        self.core.on_events(ticket, self.tokens[ticket], self.now_s)

    def end(self, ticket: Ticket) -> None:
        events = self.tokens.pop(ticket)
        self.core.on_finish(ticket, self.now_s, self.each * events, events)


@pytest.mark.parametrize("each", [1, 4])
def test_tokens_of_an_event_are_learned_and_gaps_are_those_of_a_token(each):
    replay = Speculating(each)
    for _ in range(8):
        tickets = [replay.submit(may_batch=False) for _ in range(2)]
        for _ in range(60):
            replay.step()
        for ticket in tickets:
            replay.end(ticket)
    assert replay.core.figures()["tokens_an_event"] == pytest.approx(each, rel=0.02)
    assert replay.core.step.gap_s == pytest.approx(STEP_S / each, rel=0.1)
    ticket = replay.submit(may_batch=False)
    for _ in range(11):
        replay.step()
    assert ticket.tokens == 1 + 10 * each


def test_the_count_at_an_answers_end_is_no_gap():
    replay = Speculating(4)
    ticket = replay.submit(may_batch=False)
    for _ in range(20):
        replay.step()
    observed, gap_s = replay.core.step.observed, replay.core.step.gap_s
    replay.end(ticket)
    assert (replay.core.step.observed, replay.core.step.gap_s) == (observed, gap_s)
    assert (ticket.tokens, replay.core._view.kv_tokens, replay.core._view.got_tokens) == (80, 0, 0)


def test_an_engine_that_speculates_no_longer_is_learned_anew():
    replay = Speculating(4)
    for replay.each in (4, 1):
        for _ in range(20):
            tickets = [replay.submit(may_batch=False) for _ in range(8)]
            for _ in range(200):
                replay.step()
            for ticket in tickets:
                replay.end(ticket)
    assert replay.core.figures()["tokens_an_event"] == pytest.approx(1, rel=0.15)
    replay.core._view.on_restart()
    assert replay.core.figures()["tokens_an_event"] == 1


def test_a_stream_goes_on_where_an_event_is_learned_to_have_fewer_tokens():
    replay = Speculating(4)
    long_one = replay.submit(may_batch=False)
    for _ in range(300):
        replay.step()
    seen = [long_one.tokens]
    for replay.each in (4, 1, 4, 1):
        other = replay.submit(may_batch=False)
        for _ in range(400):
            replay.step()
            seen.append(long_one.tokens)
        replay.end(other)
    assert replay.core.figures()["tokens_an_event"] > 1.5
    assert all(after > before for before, after in pairwise(seen))


def test_streams_that_leave_out_events_teach_nothing_and_measure_nothing_beside_others():
    replay = Speculating(1)
    sparse = [Ticket(Targets("none"), 0.0, 10, each_step=False) for _ in range(3)]
    for ticket in sparse:
        replay.core.submit(ticket, 0.0)
    replay.submit(may_batch=False)
    for _ in range(400):
        replay.step()
    for ticket in sparse:
        events = replay.tokens.pop(ticket)
        replay.core.on_finish(ticket, replay.now_s, 20 * events, events)
    assert replay.core.figures()["tokens_an_event"] == 1
    assert replay.core.step.gap_s == pytest.approx(STEP_S, rel=0.1)
    assert sparse[0].tokens == 20 * events


def test_an_answer_that_measures_steps_takes_over_from_one_in_batches_at_once():
    replay = Replay()
    tickets = [replay.submit() for _ in range(6)]
    for _ in range(20):
        replay.step()
    view = replay.core._view
    for ticket in [ticket for ticket in tickets if ticket is view._probe]:
        replay.end(ticket)
    observed = replay.core.step.observed
    for _ in range(40):
        replay.step()
    assert view._probe is not None
    assert view._probe.measures
    assert replay.core.step.observed > observed
    assert not any(ticket.distrusted for ticket in tickets)
