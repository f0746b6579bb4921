from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from uellm_devcluster.forward import serve
from uellm_devcluster.local import free_ports


@pytest.fixture
async def ports() -> AsyncIterator[dict[str, int]]:
    """A forwarder between two loopback ports."""
    chosen = free_ports("near", "far")
    listening = socket.create_server(("127.0.0.1", chosen["near"]))
    task = asyncio.create_task(serve(listening, "127.0.0.1", chosen["far"]))
    yield chosen
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_data_arrives_in_both_directions_even_after_one_side_has_finished(ports: dict[str, int]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        everything = await reader.read()
        writer.write(everything.upper())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", ports["far"])
    async with server:
        reader, writer = await asyncio.open_connection("127.0.0.1", ports["near"])
        said = b"a long story " * 100_000
        writer.write(said)
        writer.write_eof()
        assert await reader.read() == said.upper()
        writer.close()


async def test_a_connection_that_leads_nowhere_is_closed(ports: dict[str, int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ports["near"])
    assert await reader.read() == b""
    writer.close()
