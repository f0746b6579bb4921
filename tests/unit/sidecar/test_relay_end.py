"""When the end of an answer is sent: with its last piece, or by the task that waits for it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from uellm.http import Headers, Reply
from uellm.http.upstream import Upstream
from uellm.proxying.outcome import RequestOutcome
from uellm.proxying.record import RequestRecord
from uellm.proxying.relay import Relay


class Relayed:
    """An answer on its way through a relay. The engine's and the client's connection are played."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.written: list[bytes] = []
        transport = SimpleNamespace(write=self.written.append, is_closing=lambda: False)
        link: Any = SimpleNamespace(loop=loop, closed=False, unread=False, writing_paused=False, transport=transport)
        engine: Any = SimpleNamespace(loop=loop, take_chunk=None, resume=lambda: None)
        self.upstream = Upstream(engine)
        self.upstream.begin(200, b"OK", Headers([(b"Content-Type", b"application/json")]))
        self.reply = Reply(link, http_10=False, head_only=False, close=False)
        self.record = RequestRecord("POST", "/v1/messages", loop.time())
        self.task = loop.create_task(Relay(self.reply, self.upstream, self.record).run(()))

    def take(self, piece: bytes) -> None:
        assert self.upstream.sink is not None
        self.upstream.sink(piece)


async def test_the_last_piece_and_the_end_that_came_with_it_are_one_write():
    relayed = Relayed()
    await asyncio.sleep(0)
    relayed.upstream.complete = True
    relayed.take(b"{}")
    relayed.upstream.end(None)
    assert relayed.reply.finished
    assert len(relayed.written) == 1
    assert relayed.written[0].endswith(b"2\r\n{}\r\n0\r\n\r\n")
    await relayed.task
    assert relayed.record.outcome is RequestOutcome.COMPLETED


async def test_an_end_that_comes_alone_is_sent_once_the_task_knows_that_the_answer_is_complete():
    """A client that left after the last piece is noticed by this write, and its request completed."""
    relayed = Relayed()
    await asyncio.sleep(0)
    relayed.take(b"{}")
    relayed.upstream.complete = True
    relayed.upstream.end(None)
    assert not relayed.reply.finished
    await relayed.task
    assert relayed.written[-1] == b"0\r\n\r\n"
    assert relayed.record.outcome is RequestOutcome.COMPLETED
