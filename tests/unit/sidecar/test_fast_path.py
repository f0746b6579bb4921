"""Events are passed to the client in the chunks in which they arrived: exact, counted, always verified."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httptools
import pytest

from uellm.http import EngineAddress
from uellm.sidecar.request.dispatch import Dispatcher
from uellm.sidecar.request.fast_path import FastPath
from uellm.sidecar.scheduling import EngineState, Options, Targets, Ticket

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(text: str, reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    document = {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more}
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def usage(tokens: int) -> bytes:
    counts = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
    return b"data: " + json.dumps({"id": "c", "choices": [], "usage": counts}, separators=(",", ":")).encode() + b"\n\n"


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


class RawEngine:
    """Answers every POST with `pieces`, one write each.

    The first `steps` of them wait for `seen`, which signals that the previous one has arrived, so each is read
    separately.
    """

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.steps = 10**9
        self.seen = asyncio.Semaphore(0)
        self.ends = True
        self.at_once = False
        """Send the whole answer in one write."""
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                if not head.startswith(b"POST"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    continue
                if self.at_once:
                    writer.write(b"".join((HEAD, *self.pieces, END)))
                    continue
                writer.write(HEAD)
                for number, piece in enumerate(self.pieces):
                    if 0 < number <= self.steps:
                        await self.seen.acquire()
                    writer.write(piece)
                    await writer.drain()
                if self.ends:
                    writer.write(END)
                else:
                    await reader.read()
                    self.left.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        writer.close()


@pytest.fixture
async def raw() -> AsyncIterator[RawEngine]:
    engine = RawEngine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.address = EngineAddress("127.0.0.1", server.sockets[0].getsockname()[1])  # type: ignore[attr-defined]
    yield engine
    server.close()


class Client:
    """Sends a request and reads the answer with its own parser."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.body = bytearray()
        self.complete = self.closed = False
        self.parser = httptools.HttpResponseParser(self)

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        self.complete = True

    async def read(self) -> bool:
        data = await asyncio.wait_for(self.reader.read(65536), 10)
        self.parser.feed_data(data)
        return bool(data) and not self.complete

    async def rest(self, raw: RawEngine) -> None:
        """Read the rest, while the engine continues after every piece."""
        while await self.read():
            raw.seen.release()


@asynccontextmanager
async def asking(harness: Any, **fields: Any) -> AsyncIterator[Client]:
    client = Client(*await harness.connect())
    body = json.dumps({"model": "tiny", "stream": True, "messages": [], **fields}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    client.writer.write(head + body)
    yield client
    client.writer.close()


def accessed(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (line,) = [record.getMessage() for record in caplog.records if record.name == "uellm.sidecar.access"]
    found: dict[str, Any] = json.loads(line)
    return found


TOLD = {"stream_options": {"include_usage": True}}
ANSWER = [event(""), *(event(f"w{n}") for n in range(30)), event("", "stop")]


@pytest.mark.parametrize("fields", [{}, TOLD], ids=["usage taken out", "usage asked for"])
async def test_a_stream_in_whole_chunks_arrives_exactly_and_is_counted(raw, launch, caplog, eventually, fields):
    caplog.set_level(logging.INFO, "uellm.sidecar.access")
    harness = await launch(engine=raw.address)
    raw.pieces = [chunk(piece) for piece in (*ANSWER, usage(31), DONE)]
    raw.steps = len(ANSWER) - 1  # from the finish reason on, pieces are not passed on individually
    async with asking(harness, **fields) as client:
        await client.rest(raw)
    assert client.body == b"".join([*ANSWER, *([usage(31)] if fields else []), DONE])
    assert client.complete
    await eventually(lambda: harness.outcomes() == {"completed": 1})
    line = accessed(caplog)
    assert (line["bytesOut"], line["outputTokens"], line["promptTokens"]) == (len(client.body), 31, 7)
    assert line["tpotMilliseconds"] is not None


NULL = [event(f"w{n}", usage=None) for n in range(30)]
CONTINUOUS = [
    event(f"w{n}", usage={"prompt_tokens": 7, "completion_tokens": n + 1, "total_tokens": n + 8}) for n in range(30)
]


@pytest.mark.parametrize(
    ("fields", "words"),
    [({}, NULL), (TOLD, NULL), (TOLD, CONTINUOUS)],
    ids=["null, taken out", "null, asked for", "in every event"],
)
async def test_events_that_name_the_usage_pass_as_they_came_too(
    raw, launch, caplog, eventually, monkeypatch, fields, words
):
    caplog.set_level(logging.INFO, "uellm.sidecar.access")
    passed: list[bytes] = []
    take = FastPath.take
    monkeypatch.setattr(FastPath, "take", lambda path, piece: take(path, piece) and not passed.append(piece))
    harness = await launch(engine=raw.address)
    sent = [event(""), *words, event("", "stop", usage=None)]
    raw.pieces = [chunk(piece) for piece in (*sent, usage(31), DONE)]
    raw.steps = len(sent) - 1
    async with asking(harness, **fields) as client:
        await client.rest(raw)
    assert client.body == b"".join([*sent, *([usage(31)] if fields else []), DONE])
    await eventually(lambda: harness.outcomes() == {"completed": 1})
    assert passed == [chunk(piece) for piece in words]
    assert (accessed(caplog)["outputTokens"], accessed(caplog)["promptTokens"]) == (31, 7)


async def test_the_last_usage_counts_where_a_stream_with_usage_in_every_event_breaks(raw, launch, caplog, eventually):
    caplog.set_level(logging.INFO, "uellm.sidecar.access")
    harness = await launch(engine=raw.address)
    raw.pieces = [chunk(piece) for piece in (event(""), *CONTINUOUS[:10])]
    raw.pieces.append(b"not a chunk")
    async with asking(harness, **TOLD) as client:
        await client.rest(raw)
    await eventually(lambda: harness.outcomes() == {"engine_lost": 1})
    assert (accessed(caplog)["outputTokens"], accessed(caplog)["promptTokens"]) == (10, 7)


async def test_events_are_counted_if_no_usage_is_reported(raw, launch, caplog, eventually):
    caplog.set_level(logging.INFO, "uellm.sidecar.access")
    harness = await launch(engine=raw.address)
    raw.pieces = [chunk(piece) for piece in (*ANSWER, DONE)]
    raw.steps = len(ANSWER) - 1
    async with asking(harness, n=2) as client:
        await client.rest(raw)
    await eventually(lambda: harness.outcomes() == {"completed": 1})
    # With two choices, each begins with an event that contains only the role.
    assert accessed(caplog)["outputTokens"] == len(ANSWER) - 2


async def test_however_the_stream_is_cut_into_chunks_and_reads_the_same_arrives(raw, launch, eventually):
    harness = await launch(engine=raw.address)
    raw.steps = 0
    dice = random.Random(7)
    for turn in range(1, 16):
        whole = b"".join((*ANSWER, usage(31), DONE))
        borders = sorted({0, len(whole), *(dice.randrange(len(whole)) for _ in range(turn % 4 * 9))})
        ends = [0]
        for piece in (*ANSWER, usage(31), DONE):
            ends.append(ends[-1] + len(piece))
        borders = sorted({*borders, *dice.sample(ends, 20), 0, len(whole)})
        wire = b"".join(chunk(whole[a:b]) for a, b in itertools.pairwise(borders))
        reads = sorted({0, len(wire), *(dice.randrange(len(wire)) for _ in range(turn * 3))})
        raw.pieces = [wire[a:b] for a, b in itertools.pairwise(reads)]
        async with asking(harness) as client:
            await client.rest(raw)
        assert client.body == b"".join((*ANSWER, DONE))
        await eventually(lambda turn=turn: harness.outcomes() == {"completed": turn})


ERROR = b'data: {"error": {"message": "no", "type": "InternalServerError", "param": null, "code": 500}}\n\n'


@pytest.mark.parametrize("last", [ERROR, event("a") + ERROR, ERROR + DONE], ids=["alone", "behind", "with the end"])
async def test_an_error_in_a_chunk_is_no_token(raw, launch, caplog, eventually, last):
    caplog.set_level(logging.INFO, "uellm.sidecar.access")
    harness = await launch(engine=raw.address)
    sent = [event(""), event("a"), event("b"), last, DONE]
    raw.pieces = [chunk(piece) for piece in sent]
    async with asking(harness, **TOLD) as client:
        await client.rest(raw)
    assert client.body == b"".join(sent)
    await eventually(lambda: harness.outcomes() == {"failed_by_engine": 1})
    assert accessed(caplog)["outputTokens"] == 2


FORGED = event("forged")


@pytest.mark.parametrize(
    "broken",
    [
        b"%x\r\n%b\r\n" % (len(FORGED) + 1, FORGED),
        b"%x\r\n%b\r\n" % (len(FORGED) - 1, FORGED),
        b"+%x\r\n%b\r\n" % (len(FORGED), FORGED),
        b" %x\r\n%b\r\n" % (len(FORGED), FORGED),
        b"0x%x\r\n%b\r\n" % (len(FORGED), FORGED),
        b"-%x\r\n%b\r\n" % (len(FORGED), FORGED),
        b"%x\n%b\r\n" % (len(FORGED), FORGED),
        b"\r\n%b\r\n" % FORGED,
        FORGED + b"\r\n",
    ],
    ids=["too long", "too short", "sign", "blank", "prefix", "negative", "line feed", "no size", "no size line"],
)
async def test_an_invalid_chunk_is_never_passed_on(raw, launch, eventually, broken):
    harness = await launch(engine=raw.address)
    raw.ends, raw.steps = False, 3
    raw.pieces = [chunk(event("")), chunk(event("a")), chunk(event("b")), broken, chunk(event("c")), chunk(event("d"))]
    async with asking(harness) as client:
        await client.rest(raw)
    good = event("") + event("a") + event("b")
    assert client.body.startswith(good)
    assert b"engine_lost" in client.body.removeprefix(good)
    assert client.complete
    await eventually(lambda: harness.outcomes() == {"engine_lost": 1})
    assert harness.sidecar.dispatcher.in_flight == 0


async def test_a_client_that_disconnects_on_the_fast_path_frees_its_place(raw, launch, eventually):
    harness = await launch(engine=raw.address)
    raw.ends = False
    raw.pieces = [chunk(event(text)) for text in ("", "a", "b")]
    async with asking(harness) as client:
        while event("b") not in client.body:
            await client.read()
            raw.seen.release()
        client.writer.transport.abort()
        await asyncio.wait_for(raw.left.wait(), 5)
    await eventually(lambda: harness.outcomes() == {"client_left": 1})
    assert harness.sidecar.dispatcher.in_flight == 0


async def test_a_slow_reader_of_events_holds_back_the_engine(raw, launch, eventually):
    harness = await launch(engine=raw.address)
    raw.steps = 0
    raw.pieces = [chunk(event(""))] + [chunk(event("x" * 3000))] * 6000
    async with asking(harness) as client:
        while len(client.body) < 30_000:
            await client.read()
        client.writer.transport.pause_reading()
        (connection,) = harness.connections()
        await eventually(lambda: connection.writing_paused)
        assert connection.transport.get_write_buffer_size() <= 256 * 1024
        client.writer.transport.resume_reading()
        await client.rest(raw)
    assert client.body == event("") + event("x" * 3000) * 6000


@pytest.mark.parametrize("at_once", [False, True], ids=["in pieces", "complete before it is relayed"])
async def test_requests_leave_nothing_behind_that_only_the_collector_can_free(raw, launch, eventually, at_once):
    harness = await launch(engine=raw.address)
    raw.steps = 0
    raw.at_once = at_once
    raw.pieces = [chunk(piece) for piece in (*ANSWER, usage(31), DONE)]
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            async with asking(harness) as client:
                await client.rest(raw)
        await eventually(lambda: harness.outcomes() == {"completed": 3} and not harness.connections())
        gc.collect()
        left = {type(each).__name__ for each in gc.garbage if type(each).__module__.startswith("uellm")}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == set()


class Asked:
    """A dispatcher with one request at the engine, and the events of its stream that were not read."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher(Options("FCFS"))
        self.dispatcher.on_engine_state(EngineState(ready=True))
        self.ticket = Ticket(Targets("a"), 0.0, prompt_tokens=9)

    async def begin(self) -> None:
        await self.dispatcher.turn(self.ticket)
        self.dispatcher.first_token(self.ticket)
        now_s = asyncio.get_running_loop().time()
        self.dispatcher.token_updates += [(self.ticket, tokens, now_s) for tokens in (2, 3, 5)]


@pytest.mark.parametrize(
    "decides",
    [
        lambda asked: asked.dispatcher.figures(),
        lambda asked: asked.dispatcher.on_engine_state(EngineState(ready=True)),
        lambda asked: asked.dispatcher.reconfigure(Options("EDF")),
        lambda asked: asked.dispatcher.first_token(asked.ticket),
        lambda asked: asked.dispatcher.finish(asked.ticket),
        lambda asked: asked.dispatcher.abort(asked.ticket),
        lambda asked: asked.dispatcher.update_lengths(asked.ticket, None),
    ],
    ids=["figures", "engine state", "reconfigure", "first token", "finish", "abort", "lengths"],
)
async def test_the_scheduler_knows_of_every_token_before_it_decides(decides):
    asked = Asked()
    await asked.begin()
    decides(asked)
    asked.dispatcher.close()
    assert asked.ticket.tokens == 5
    assert asked.ticket.last_token_s is not None
    assert asked.dispatcher.token_updates == []
