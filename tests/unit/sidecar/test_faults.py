"""If the accounting of an answer fails, the client still gets the answer, and its place is freed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from uellm.prompt import Ratio
from uellm.proxying import metrics
from uellm.proxying.outcome import Refusal, RequestOutcome
from uellm.sidecar.prediction import Prediction
from uellm.sidecar.prediction import service as predictor
from uellm.sidecar.request import dispatch
from uellm.sidecar.request.retry_after import RetryTimes
from uellm.sidecar.scheduling import EngineState, Options, Scheduler, Targets, Ticket
from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.fairness import Fairness
from uellm.sidecar.telemetry import attainment, sidecar_metrics, tracing
from uellm.sidecar.telemetry.access_log import Record
from uellm.sidecar.wire import events, failure, shape

SECRET = "planted"
EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":3,"total_tokens":6}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = [EVENT, EVENT, EVENT, USAGE, DONE]
WHOLE = {
    "id": "c",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
CORE = ("submit", "dispatchable", "expire", "next_event_s", "on_first_token", "on_tokens", "on_finish", "on_abort")
BROKEN: list[tuple[Any, str]] = [
    *((Scheduler, name) for name in (*CORE, "on_lengths", "on_engine_state", "figures", "restart")),
    *((EngineView, name) for name in ("on_dispatch", "on_first_token", "on_tokens", "remove")),
    *((Fairness, name) for name in ("arrived", "charge", "left")),
    *((predictor.Predictor, name) for name in ("predict", "ask", "observe")),
    *((Prediction, "lengths"), (Ratio, "learn"), (shape.AnswerShapes, "learn")),
    *((events.TokenCounter, "feed"), (events.TokenCounter, "usage"), (failure.StreamErrorScanner, "feed")),
    *(
        (metrics.Counter, "add"),
        (metrics.Histogram, "observe"),
        (attainment.Attainment, "add"),
        (sidecar_metrics, "missed"),
    ),
    *((RetryTimes, name) for name in ("set_waiting", "record_completion", "retry_s")),
    *((Record, "to_json"), (tracing.RequestSpan, "end"), (tracing.Tracing, "begin")),
]


@pytest.fixture
def break_it(monkeypatch) -> Callable[[Any, str], None]:
    def broken(*args: Any, **named: Any) -> Any:
        raise ZeroDivisionError(SECRET)

    return lambda owner, name: monkeypatch.setattr(owner, name, broken)


def traced() -> tracing.Tracing:
    from opentelemetry.sdk.trace import TracerProvider

    return tracing.Tracing(TracerProvider())


async def stream(harness) -> bytes:
    asked = {"stream": True, "messages": [], "stream_options": {"include_usage": True}}
    async with harness.post(json.dumps(asked).encode()) as response:
        assert response.status == 200
        return await response.read()


async def whole(harness) -> Any:
    async with harness.post(b'{"messages": [], "tools": []}') as response:
        assert response.status == 200
        return await response.json()


@pytest.mark.parametrize(("owner", "name"), BROKEN, ids=[f"{owner.__name__}.{name}" for owner, name in BROKEN])
async def test_an_answer_outlives_whatever_fails_beside_it(engine, launch, eventually, break_it, owner, name):
    harness = await launch({"classes": [{"name": "chat", "ttft": "1s", "tpot": "1s"}], "engine": {"maxNumSeqs": 2}})
    harness.sidecar.proxy.tracing = traced()
    dispatcher = harness.sidecar.dispatcher

    async def answer(request: web.Request, received: Any) -> web.StreamResponse:
        if b'"stream": true' in received.body or b'"stream":true' in received.body:
            return await engine.stream(*STREAM)(request, received)
        return web.json_response(WHOLE)

    engine.script = answer
    break_it(owner, name)
    for _ in range(3):
        asked = [stream(harness), whole(harness), stream(harness), whole(harness)]
        answers = await asyncio.wait_for(asyncio.gather(*asked), 10)
        assert answers == [b"".join(STREAM), WHOLE] * 2
    leaving = harness.ask(b'{"stream": true, "messages": []}')
    await engine.arrivals.get()
    leaving.cancel()
    await eventually(lambda: harness.sidecar.proxy.drain.active == 0)
    assert (dispatcher.in_flight, dispatcher.queued) == (0, 0)
    assert not dispatcher._tickets
    assert not dispatcher._unscheduled
    assert not dispatcher._waiting


async def test_a_fault_is_counted_and_logged_without_the_requests_text(engine, harness, break_it, caplog):
    break_it(attainment.Attainment, "add")
    async with harness.post(b'{"secret": 1}') as response:
        assert response.status == 200
    assert harness.sidecar.figures.faults.counter.value("attainment") == 1
    assert "attainment failed by ZeroDivisionError" in caplog.text
    assert SECRET not in caplog.text
    assert harness.outcomes() == {"completed": 1}


async def test_after_a_fault_of_the_scheduler_every_request_keeps_its_place(engine, launch, eventually, monkeypatch):
    harness = await launch({"classes": [], "engine": {"maxNumSeqs": 1}, "scheduling": {"policy": "FCFS"}})
    engine.script = engine.on_word
    asked = [harness.ask(b"0")]
    running = await engine.arrivals.get()
    for number in range(1, 5):
        asked.append(harness.ask(b"%d" % number))
        await eventually(lambda number=number: harness.sidecar.dispatcher.queued == number)
    with monkeypatch.context() as once:
        once.setattr(Scheduler, "on_finish", lambda *args: 1 / 0)
        running.go_on.set()
        order = []
        running = await engine.arrivals.get()
    while True:
        order.append(running.body)
        assert harness.sidecar.dispatcher.in_flight == 1
        running.go_on.set()
        if len(order) == 4:
            break
        running = await engine.arrivals.get()
    await asyncio.gather(*asked)
    assert order == [b"1", b"2", b"3", b"4"]
    assert harness.sidecar.dispatcher.in_flight == 0


async def test_a_scheduler_that_keeps_failing_is_paused_and_resumes(engine, launch, eventually, monkeypatch):
    monkeypatch.setattr(dispatch, "PAUSE_S", 0.2)
    harness = await launch({"classes": [], "engine": {"maxNumSeqs": 1}})
    dispatcher = harness.sidecar.dispatcher
    with monkeypatch.context() as broken:
        broken.setattr(Scheduler, "submit", lambda *args: 1 / 0)
        engine.script = engine.on_word
        asked = [harness.ask() for _ in range(3)]
        running = [await engine.arrivals.get() for _ in asked]
        assert dispatcher.in_flight == 3
        assert dispatcher.figures()["failed_open"] == 1
        for received in running:
            received.go_on.set()
        await asyncio.gather(*asked)
    await eventually(lambda: dispatcher.figures()["failed_open"] == 0)
    asked = [harness.ask() for _ in range(2)]
    running[0] = await engine.arrivals.get()
    await eventually(lambda: (dispatcher.in_flight, dispatcher.queued) == (1, 1))
    running[0].go_on.set()
    (await engine.arrivals.get()).go_on.set()
    await asyncio.gather(*asked)


async def test_an_unscheduled_request_during_an_outage_is_reported(monkeypatch):
    dispatcher = dispatch.Dispatcher(Options())
    monkeypatch.setattr(Scheduler, "submit", lambda *args: 1 / 0)
    ticket = Ticket(Targets("chat"), 0.0)
    await dispatcher.turn(ticket)
    await dispatcher.turn(ticket)
    with pytest.raises(Refusal) as refused:
        await dispatcher.turn(ticket)
    assert refused.value.outcome is RequestOutcome.ENGINE_UNAVAILABLE
    dispatcher.abort(ticket)
    assert dispatcher.in_flight == 0
    dispatcher.close()


async def test_measuring_goes_on_after_a_fault(monkeypatch):
    dispatcher = dispatch.Dispatcher(Options())
    dispatcher.on_engine_state(EngineState(ready=True))
    first, second = Ticket(Targets("chat"), 0.0), Ticket(Targets("chat"), 0.0)
    await dispatcher.turn(first)
    dispatcher.first_token(first)
    with monkeypatch.context() as once:
        once.setattr(Scheduler, "on_finish", lambda *args: 1 / 0)
        dispatcher.finish(first, 1)
    await dispatcher.turn(second)
    dispatcher.first_token(second)
    now_s = asyncio.get_running_loop().time()
    dispatcher.token_updates += [(second, 2, now_s + 0.1), (second, 3, now_s + 0.2)]
    dispatcher.finish(second, 3)
    assert dispatcher._core.step.observed > 0
    dispatcher.close()
