"""Streams as real vLLM sent them, chunk by chunk (bench/sidecar_load/record.py): exact, and on the fast path."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from uellm.http import EngineAddress
from uellm.sidecar.request.answer import AnswerTap
from uellm.sidecar.request.fast_path import FastPath
from uellm.sidecar.wire.aggregate import Aggregator

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "data" / "recorded-streams.json").read_text()
)
STREAMS = [name for name, each in RECORDED.items() if each["request"].get("stream")]
STREAM_OF = {"whole-chat": "chat-usage", "whole-completion": "completions-usage"}
"""The stream of the same answer."""
FAST_EVENTS = {"responses": 4, "chat-batched": 2, "chat-logprobs-batched": 2, "completions-batched": 1}
"""Events on the fast path at least, if not 9. Each stream has 12 tokens; the first and the last take the normal path.
`/v1/responses` had several tokens in some events, as batches have."""


class Player:
    """An engine that plays the recording of `name`, or the one with usage if the request asks for it."""

    def __init__(self) -> None:
        self.name = ""
        self.seen = asyncio.Semaphore(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                body = await reader.readexactly(length)
                if head.startswith(b"POST"):
                    await self.play(body, writer)
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def play(self, body: bytes, writer: asyncio.StreamWriter) -> None:
        more = f"{self.name}-usage"
        recorded = RECORDED[more if more in RECORDED and b'"include_usage":true' in body else self.name]
        if not recorded["request"]["stream"] and b'"stream":true' in body:
            recorded = RECORDED[STREAM_OF[self.name]]
        fields = "".join(f"{name}: {value}\r\n" for name, value in recorded["headers"])
        writer.write(f"HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n".encode())
        for number, text in enumerate(recorded["chunks"]):
            if number and "[DONE]" not in text and '"choices":[]' not in text:
                await self.seen.acquire()
            piece = text.encode()
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")


def timeless(text: str) -> str:
    return re.sub(r'"created":\d+', '"created":0', text)


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_of_real_vllm_arrives_as_vllm_sends_it_and_on_the_fast_path(
    launch, eventually, monkeypatch, name
):
    player = Player()
    server = await asyncio.start_server(player.serve, "127.0.0.1", 0)
    passed: list[bytes] = []
    take = FastPath.take
    monkeypatch.setattr(FastPath, "take", lambda path, piece: take(path, piece) and not passed.append(piece))
    harness = await launch(engine=EngineAddress("127.0.0.1", server.sockets[0].getsockname()[1]))
    player.name, recorded = name, RECORDED[name]
    body = json.dumps(recorded["request"], separators=(",", ":")).encode()
    received = b""
    async with harness.post(body, path=recorded["path"]) as response:
        async for piece in response.content.iter_any():
            received += piece
            player.seen.release()
    assert timeless(received.decode()) == timeless("".join(recorded["chunks"]))
    await eventually(lambda: harness.outcomes() == {"completed": 1})
    assert len(passed) >= FAST_EVENTS.get(name, 9)
    server.close()


@pytest.mark.parametrize("name", STREAM_OF)
async def test_a_whole_answer_that_is_put_together_on_the_fast_path_equals_vllms_own(launch, monkeypatch, name):
    player = Player()
    server = await asyncio.start_server(player.serve, "127.0.0.1", 0)
    passed: list[bytes] = []
    count, take_chunk = AnswerTap.count, Aggregator.take_chunk

    def counted(tap: AnswerTap, piece: bytes) -> None:
        count(tap, piece)
        player.seen.release()

    def taken(whole: Aggregator, chunk: bytes) -> None:
        take_chunk(whole, chunk)
        passed.append(chunk)
        player.seen.release()

    monkeypatch.setattr(AnswerTap, "count", counted)
    monkeypatch.setattr(Aggregator, "take_chunk", taken)
    harness = await launch(engine=EngineAddress("127.0.0.1", server.sockets[0].getsockname()[1]))
    player.name, recorded = name, RECORDED[name]
    body = json.dumps(recorded["request"], separators=(",", ":")).encode()
    answers = []
    for _ in range(2):  # the first answer is vllm's own, which shows the shape
        player.seen = asyncio.Semaphore(0)
        async with harness.post(body, path=recorded["path"]) as response:
            answers.append(timeless(await response.text()))
    assert answers == [timeless(recorded["chunks"][0])] * 2
    assert len(passed) >= 9
    server.close()
