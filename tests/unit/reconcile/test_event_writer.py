from __future__ import annotations

import asyncio

from uellm.kube import Fenced, Forbidden
from uellm.reconcile.event_writer import EventWriter
from uellm.reconcile.names import Key

KEY = Key("ns", "llama")


class Server:
    """Takes Events; refuses those whose name begins with `bad`."""

    def __init__(self):
        self.created = []

    async def create(self, event):
        if event["name"].startswith("bad"):
            raise Forbidden(403, "Forbidden", "the namespace is being terminated")
        self.created.append(event["name"])


async def test_an_event_is_created_at_once_where_nothing_else_is_said():
    server = Server()
    await EventWriter(server).write(KEY, {"name": "a"})
    assert server.created == ["a"]


async def test_events_that_may_come_later_are_created_in_their_order_and_a_refused_one_holds_up_none(caplog):
    server = Server()
    writer = EventWriter(server, later=True)
    for name in ("a", "bad", "b"):
        await writer.write(KEY, {"name": name})
    assert server.created == []
    keeping = asyncio.create_task(writer.keep())
    async with asyncio.timeout(10):
        while server.created != ["a", "b"]:  # noqa: ASYNC110 - each turn of the event loop brings it nearer
            await asyncio.sleep(0)
    keeping.cancel()
    assert "ns/llama no Event created: " in caplog.text


async def test_too_many_events_that_wait_are_dropped_with_a_line(caplog, monkeypatch):
    monkeypatch.setattr("uellm.reconcile.event_writer.MOST_WAITING", 1)
    writer = EventWriter(Server(), later=True)
    await writer.write(KEY, {"name": "a"})
    await writer.write(KEY, {"name": "b"})
    assert "ns/llama no Event created: 1 wait already" in caplog.text


async def test_events_wait_while_the_lease_is_in_doubt(caplog, monkeypatch):
    monkeypatch.setattr("uellm.reconcile.event_writer.FENCED_S", 0.0)
    server, refused = Server(), 0
    created = server.create

    async def create(event):
        nonlocal refused
        refused += 1
        if refused <= 3:
            raise Fenced(0, "Fenced", "not written")
        await created(event)

    server.create = create
    writer = EventWriter(server, later=True)
    for name in ("a", "b"):
        await writer.write(KEY, {"name": name})
    keeping = asyncio.create_task(writer.keep())
    async with asyncio.timeout(10):
        while server.created != ["a", "b"]:  # noqa: ASYNC110 - each turn of the event loop brings it nearer
            await asyncio.sleep(0)
    keeping.cancel()
    assert caplog.text == ""
