"""An error of the engine in a stream with status 200 counts as a failure, on every route, however it is split."""

from __future__ import annotations

import json
import logging

import pytest

from uellm.sidecar.wire.failure import StreamErrorScanner
from uellm.vllm_routes import RouteKind

DONE = b"data: [DONE]\n\n"


def data(document: object, event: str = "") -> bytes:
    named = f"event: {event}\n" if event else ""
    return f"{named}data: {json.dumps(document)}\n\n".encode()


def error(code: int = 500) -> bytes:
    return data({"error": {"message": "no", "type": "InternalServerError", "param": None, "code": code}})


CHAT_EVENT = data({"id": "c", "choices": [{"index": 0, "delta": {"content": 'an "error": {'}}]})
TEXT = data({"id": "c", "choices": [{"index": 0, "text": 'event: error\ndata: {"error":'}]})
DELTA = data({"type": "response.output_text.delta", "delta": "x"}, "response.output_text.delta")
CREATED = data({"type": "response.created", "response": {"error": None}}, "response.created")
RESPONSE = {"id": "r", "status": "failed", "error": {"code": "server_error", "message": "no"}}
FAILED = data({"type": "response.failed", "response": RESPONSE}, "response.failed")
BLOCK = data({"type": "content_block_delta", "delta": {"text": "x"}}, "content_block_delta")
ANTHROPIC = data({"type": "error", "error": {"type": "internal_error", "message": "no"}}, "error")
STREAMS = {
    "chat": ("/v1/chat/completions", RouteKind.CHAT, [CHAT_EVENT, CHAT_EVENT], [error(), DONE]),
    "completions": ("/v1/completions", RouteKind.COMPLETIONS, [TEXT, TEXT], [error(), DONE]),
    "responses, failed": ("/v1/responses", RouteKind.RESPONSES, [CREATED, DELTA], [FAILED]),
    "responses, error": (
        "/v1/responses",
        RouteKind.RESPONSES,
        [CREATED, DELTA],
        [data({"type": "error", "code": "server_error"}, "error")],
    ),
    "messages": ("/v1/messages", RouteKind.MESSAGES, [BLOCK, BLOCK], [ANTHROPIC]),
    "transcriptions": ("/v1/audio/transcriptions", RouteKind.OTHER, [CHAT_EVENT], [error(), DONE]),
}


@pytest.mark.parametrize(("path", "kind", "good", "bad"), STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("first", [False, True], ids=["after tokens", "at once"])
async def test_an_error_inside_a_stream_is_a_failure_everywhere(
    engine, harness, eventually, caplog, path, kind, good, bad, first
):
    caplog.set_level(logging.INFO, "uellm.sidecar.access")
    pieces = bad if first else [*good, *bad]
    engine.script = engine.stream(*pieces)
    body = json.dumps({"model": "tiny", "stream": True, "messages": [], "prompt": "x", "input": "x"}).encode()
    async with harness.post(body, path=path) as response:
        assert await response.read() == b"".join(pieces)
    await eventually(lambda: harness.outcomes() == {"failed_by_engine": 1})
    figures = harness.sidecar.figures
    assert figures.missed.value("interactive", "dropped") == 1
    assert (figures.met.value("interactive"), figures.good_tokens.value("interactive")) == (0, 0)
    measured = harness.sidecar.proxy.attainment().classes[0]
    assert (measured.requests, measured.met) == (1, 0)
    (line,) = [json.loads(record.message) for record in caplog.records if record.name == "uellm.sidecar.access"]
    assert (line["outcome"], line["status"]) == ("failed_by_engine", 200)
    assert harness.sidecar.dispatcher.in_flight == 0


async def test_an_error_caused_by_the_request_is_reported_as_such(engine, harness, eventually):
    engine.script = engine.stream(CHAT_EVENT, error(400), DONE)
    async with harness.post(b'{"stream": true, "messages": []}') as response:
        await response.read()
    await eventually(lambda: harness.outcomes() == {"rejected_by_engine": 1})
    assert harness.sidecar.figures.judged.value("interactive") == 0


async def test_a_client_that_hangs_up_on_done_after_an_error_was_not_served(engine, harness, eventually):
    engine.script = engine.stream(CHAT_EVENT, error(), DONE, hold=True)
    async with harness.post(b'{"stream": true, "messages": []}') as response:
        await response.content.readuntil(DONE)
    await eventually(lambda: harness.outcomes() == {"failed_by_engine": 1})


@pytest.mark.parametrize(("path", "kind", "good", "bad"), STREAMS.values(), ids=STREAMS)
def test_an_error_is_found_wherever_the_stream_is_split(path, kind, good, bad):
    stream = b"".join([*good, *bad])
    for at in range(len(stream)):
        found = StreamErrorScanner(kind)
        found.feed(stream[:at])
        assert found.feed(stream[at:])
        assert found.status == 500


@pytest.mark.parametrize(("path", "kind", "good", "bad"), STREAMS.values(), ids=STREAMS)
def test_text_that_quotes_an_error_is_not_an_error(path, kind, good, bad):
    found = StreamErrorScanner(kind)
    assert not any(found.feed(piece) for piece in (*good, DONE))
    assert found.status == 0


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (error(404), 404),
        (error(200), 500),
        (b'data: {"error": {"code": 40', 500),
        (b'data: {"error":' + b"[" * 100_000, 500),
        (data({"error": "no"}), 500),
    ],
)
def test_the_status_is_the_engines_own_if_it_reports_one(event, status):
    found = StreamErrorScanner(RouteKind.CHAT)
    assert found.feed(event)
    assert found.status == status


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", ["true", "false"])
async def test_a_stream_that_ends_well_before_its_last_event_is_not_whole(engine, harness, eventually, path, stream):
    engine.script = engine.stream(CHAT_EVENT, CHAT_EVENT)
    async with harness.post(b'{"stream": %b}' % stream.encode(), path=path) as response:
        assert await response.read() == 2 * CHAT_EVENT
    await eventually(lambda: harness.outcomes() == {"engine_lost": 1})
    assert (harness.sidecar.figures.met.value("interactive"), harness.sidecar.dispatcher.in_flight) == (0, 0)


async def test_a_stream_of_another_route_needs_no_such_event(engine, harness, eventually):
    engine.script = engine.stream(DELTA)
    async with harness.post(b'{"stream": true}', path="/v1/responses") as response:
        assert await response.read() == DELTA
    await eventually(lambda: harness.outcomes() == {"completed": 1})
