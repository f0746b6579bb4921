"""Whatever a pod writes to the gateway as its load, the gateway reads on, and at its own pace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from uellm.api.replica_load import PrefixNews, ReplicaLoad
from uellm.gateway import loads
from uellm.gateway.loads import LoadReader
from uellm.http import EngineAddress
from uellm.routing.prefixes import MOST_BLOCKS, HeldPrefixes

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"


def line(**fields: Any) -> bytes:
    return json.dumps({**ReplicaLoad(incarnation="1").to_dict(), **fields}).encode() + b"\n"


class Pod:
    """Writes one of `answers` to each connection, then the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.connections = 0
        self.reports: asyncio.Queue[ReplicaLoad] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            answer = self.answers[min(self.connections, len(self.answers) - 1)]
            self.connections += 1
            writer.write(HEAD + answer)
            await writer.drain()
            await reader.read()
        writer.close()


@pytest.fixture
async def pod(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    """A pod and a reader of its load, which begins as soon as the test waits."""
    monkeypatch.setattr(loads, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(loads, "PAUSE_S", 0.001)
    pod = Pod()
    listening = await asyncio.start_server(pod.serve, "127.0.0.1", 0)
    address = EngineAddress("127.0.0.1", listening.sockets[0].getsockname()[1])
    reading = asyncio.create_task(LoadReader(address, lambda: 0, pod.reports.put_nowait).run())
    yield pod
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    listening.close()


@pytest.mark.parametrize(
    "hostile",
    [
        b"[" * 100_000 + b"\n",
        b"not JSON\n",
        b'{"version":99}\n',
        b"\xff\xfe\n",
        b"x" * 600_000,
        line() * 2000,
    ],
    ids=["deep", "no JSON", "another version", "no text", "no line", "a flood"],
)
async def test_after_a_stream_without_meaning_the_next_one_is_read(pod: Pod, hostile: bytes) -> None:
    pod.answers = [hostile, line(sequences=7)]
    async with asyncio.timeout(5):
        while (await pod.reports.get()).sequences != 7:
            pass
    assert pod.connections == 2


async def test_a_number_of_thousands_of_digits_is_only_bounded(pod: Pod) -> None:
    digits = b"9" * 4000
    pod.answers = [line(sequences=5).replace(b'"kvTokens": 0', b'"kvTokens": ' + digits)]
    load = await asyncio.wait_for(pod.reports.get(), 5)
    assert (load.sequences, load.kv_tokens) == (5, 10**12)


async def test_an_equal_line_renews_the_load_and_is_not_parsed_again(pod: Pod) -> None:
    pod.answers = [line(sequences=1) * 3 + line(sequences=2) + line(sequences=1)]
    async with asyncio.timeout(5):
        loads = [await pod.reports.get() for _ in range(5)]
    assert [load.sequences for load in loads] == [1, 1, 1, 2, 1]
    assert len({id(load) for load in loads}) == 3


async def test_a_long_line_is_read_anew_each_time_and_takes_no_memory_in_between(pod: Pod) -> None:
    long = line(prefixes={"count": 4000, "hashes": list(range(4000))})
    pod.answers = [long * 2]
    async with asyncio.timeout(5):
        first, second = await pod.reports.get(), await pod.reports.get()
    assert first == second
    assert first is not second


def test_a_replica_that_reports_an_endless_cache_fills_no_memory() -> None:
    held = HeldPrefixes()
    for count in range(4096, 30 * 4096, 4096):
        held.report(PrefixNews(count, tuple(range(count - 4096, count))), 10**12)
    assert held.tokens(range(30 * 4096 - 4096 - MOST_BLOCKS, 30 * 4096)) == MOST_BLOCKS * 512
    assert held.tokens((0,)) == 0
