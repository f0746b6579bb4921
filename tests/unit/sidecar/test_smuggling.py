"""Requests that two parsers could read differently are refused, or re-framed so that only one reading is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from helpers.smuggling import CORPUS, REWRITTEN, Recorder
from uellm.http import EngineAddress, RequestLimits


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    server = Recorder()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.address = EngineAddress("127.0.0.1", listening.sockets[0].getsockname()[1])
    yield server
    listening.close()


@pytest.mark.parametrize("sent", CORPUS.values(), ids=CORPUS)
async def test_no_byte_of_an_ambiguous_request_reaches_the_engine(recorder, launch, sent):
    harness = await launch(limits=RequestLimits(body_deadline_s=0.2), engine=recorder.address)
    answer = await harness.raw(sent)
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"sleep" not in answer
    assert recorder.received == []
    assert sum(harness.outcomes().values()) >= 1


@pytest.mark.parametrize("sent", REWRITTEN.values(), ids=REWRITTEN)
async def test_what_may_pass_reaches_the_engine_as_one_request_with_one_reading(recorder, launch, sent):
    harness = await launch(engine=recorder.address)
    answer = await harness.raw(sent)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1
    head, _, body = b"".join(recorder.received).partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    assert line == b"POST /v1/completions HTTP/1.1"
    names = [field.partition(b":")[0].lower() for field in fields]
    assert sorted(names) == [b"content-length", b"host", b"x-request-id"]
    (length,) = (int(field.partition(b":")[2]) for field in fields if field.lower().startswith(b"content-length:"))
    assert length == len(body)
    assert b"x-late" not in body.lower()


async def test_an_absolute_target_does_not_choose_another_host(engine, harness):
    head = b"GET http://169.254.169.254/v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert b"200 OK" in await harness.raw(head)
    assert [r.path for r in engine.received] == ["/v1/models"]


async def test_unreadable_input_is_never_quoted(harness, caplog):
    answer = await harness.raw(b"POST /planted-secret\x01 HTTP/1.1\r\nplanted secret\r\n\r\n")
    assert b"planted" not in answer
    assert "planted" not in caplog.text
