from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from uellm.reconcile.pods import sidecar_client as module
from uellm.reconcile.pods.sidecar_client import NotAsked, SidecarClient, parse


@pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b'"x"', b" " * 300_000, b"[" * 100_000])
def test_an_answer_that_is_not_a_report_is_ignored(body):
    assert parse(200, body) is None


def test_only_a_good_answer_is_a_report():
    assert parse(404, json.dumps({"error": "absent"}).encode()) is None
    assert parse(200, b'{"layers": [1]}') == {"layers": [1]}


HIDDEN = [f"127.0.0.{number}" for number in range(1, 41)]


class Silent:
    """A pod behind a network policy: nothing answers, as long as it is `hidden`. Counts connections."""

    def __init__(self):
        self.hidden = True
        self.asked = 0
        self.over = asyncio.Event()
        self.waiting = asyncio.Semaphore(0)

    async def serve(self, reader, writer):
        self.asked += 1
        await reader.readuntil(b"\r\n\r\n")
        if self.hidden:
            self.waiting.release()
            await self.over.wait()
        else:
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"layers": 1}')
            await writer.drain()
        writer.close()


@pytest.fixture
async def silent():
    pod = Silent()
    first = await asyncio.start_server(pod.serve, HIDDEN[0], 0)
    pod.port = first.sockets[0].getsockname()[1]
    others = await asyncio.start_server(pod.serve, HIDDEN[1:], pod.port)
    yield pod
    pod.over.set()
    for server in (first, others):
        server.close()


async def test_a_pod_from_which_no_packet_comes_is_asked_less_and_less_often(silent, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.5)
    now_s = 0.0
    async with SidecarClient(port=silent.port, clock=lambda: now_s) as sidecars:
        for wait_s in (5.0, 10.0, 20.0):
            asked = silent.asked
            assert await sidecars.placement("127.0.0.1") is None
            assert await sidecars.placement("127.0.0.1") is None
            assert silent.asked == asked + 1
            now_s += wait_s
        silent.hidden = False
        assert await sidecars.placement("127.0.0.1") == {"layers": 1}
        assert await sidecars.placement("127.0.0.1") == {"layers": 1}


async def test_however_many_pods_are_hidden_few_requests_wait_for_them(silent, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    async with SidecarClient(port=silent.port) as sidecars:
        pending = [asyncio.create_task(sidecars.placement(address)) for address in HIDDEN]
        done, waiting = await asyncio.wait(pending, timeout=0.1)
        assert len(waiting) == module.MOST_UNPROVEN
        assert {task.result() for task in done} == {None}
        await asyncio.gather(*waiting)


async def test_however_many_pods_are_hidden_one_that_answers_is_asked(silent, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    async with SidecarClient(port=silent.port) as sidecars:
        silent.hidden = False
        assert await sidecars.placement(HIDDEN[0]) == {"layers": 1}
        silent.hidden = True
        pending = [asyncio.create_task(sidecars.placement(address)) for address in HIDDEN[1:]]
        for _ in range(module.MOST_UNPROVEN):
            await asyncio.wait_for(silent.waiting.acquire(), 5)
        silent.hidden = False
        assert await sidecars.placement(HIDDEN[0]) == {"layers": 1}
        await asyncio.gather(*pending)


async def test_of_more_pods_than_there_are_connections_for_the_rest_is_told_that_it_was_not_asked(silent):
    silent.hidden = False
    async with SidecarClient(port=silent.port) as sidecars:
        answers = await asyncio.gather(*map(sidecars.measurements, HIDDEN), return_exceptions=True)
        assert sum(answer == {"layers": 1} for answer in answers) == module.MOST_UNPROVEN
        assert sum(isinstance(answer, NotAsked) for answer in answers) == len(HIDDEN) - module.MOST_UNPROVEN
        answers = await asyncio.gather(*map(sidecars.measurements, HIDDEN), return_exceptions=True)
        assert sum(answer == {"layers": 1} for answer in answers) == module.MOST_OPEN


@pytest.fixture
async def answering():
    """(a client, a function that sets what the pod at 127.0.0.1 sends)."""
    sent = [b""]

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent[0])
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with SidecarClient(port=server.sockets[0].getsockname()[1]) as client:
        yield client, lambda content: sent.__setitem__(0, content)
    server.close()


def reply(status, body):
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


async def test_an_inspection_pod_answers_reads_or_is_silent(answering):
    client, send = answering
    send(reply(200, b'{"facts": 1}'))
    assert await client.model("127.0.0.1") == {"facts": 1}
    send(reply(503, b'{"reading": true}'))
    assert await client.model("127.0.0.1") == {}
    assert await client.model("127.0.0.2") is None


async def test_a_download_pod_answers_or_is_silent(answering):
    client, send = answering
    send(reply(200, b'{"progress": 1}'))
    assert await client.download("127.0.0.1") == {"progress": 1}
    assert await client.download("127.0.0.2") is None


async def test_an_answer_without_end_is_not_read_to_its_end(answering):
    client, send = answering
    send(reply(200, b'{"a": "' + b"x" * (40 << 20) + b'"}'))
    assert await client.model("127.0.0.1") == {}
    assert await client.running("127.0.0.1") is None


async def test_an_answer_that_trickles_is_given_up(silent, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_S", 0.05)
    async with SidecarClient(port=silent.port) as client:
        assert await client.model(HIDDEN[0]) is None
