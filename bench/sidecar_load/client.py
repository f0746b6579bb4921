"""The load generator: connections that ask again and again, and what they saw."""

from __future__ import annotations

import asyncio
import json
import random
import string
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle

from sidecar_load.upstream import COMPLETION, DONE, ENDING_STREAM, RECORDED, SHORT, WHOLE

PROMPTS, WORDS, VOCABULARY = 500, 340, 3000
"""Each prompt has some 2,000 characters, and begins in its own way, as those of real users do."""
MESSAGES = 10
"""Requests that a connection has to ask with."""


def _prompts() -> list[str]:
    drawn = random.Random(1)
    words = ["".join(drawn.choices(string.ascii_lowercase, k=drawn.randint(1, 9))) for _ in range(VOCABULARY)]
    return [" ".join(drawn.choices(words, k=WORDS)) for _ in range(PROMPTS)]


_PROMPTS = cycle(_prompts())


def request(path: str, body: bytes | None = None, *, whole: bool = False) -> bytes:
    """A POST as bytes, unless there is a body of another chat, or of another prompt for a short answer.

    `whole`: the chat's answer is not to be streamed.
    """
    if "?play=" in path:
        body = json.dumps(RECORDED[path.partition("?play=")[2]]["request"], separators=(",", ":")).encode()
    if body is None and path == COMPLETION:
        body = json.dumps({"model": "m", "prompt": next(_PROMPTS), "max_tokens": 1}).encode()
    elif body is None:
        streams = {} if whole else {"stream": True}
        body = json.dumps({"model": "m", **streams, "messages": [{"role": "user", "content": next(_PROMPTS)}]}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Seen:
    """What all connections of one run saw."""

    first_s: list[float] = field(default_factory=list)
    """From sending a request to the first byte of its answer's body."""
    answers: int = 0
    events: int = 0
    failed: int = 0


class Asking(asyncio.Protocol):
    """One connection: asks, waits for the answer's end, then calls `then` or asks again, until `stop`.

    It asks with each of the messages in turn.
    """

    def __init__(self, messages: list[bytes], ends: bytes, seen: Seen, then: Callable[[], None] | None = None) -> None:
        self.messages, self.ends, self.seen, self.then = cycle(messages), ends, seen, then or self.ask
        self.stopped = False
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.waiting = True
        self.tail = b""
        self.sent_s = time.perf_counter()
        self.transport.write(next(self.messages))

    def data_received(self, data: bytes) -> None:
        if self.waiting:
            data = self.tail = self.tail + data
            head = data.find(b"\r\n\r\n") + 4
            if head == 3 or len(data) == head:
                return
            self.waiting = False
            self.seen.first_s.append(time.perf_counter() - self.sent_s)
            self.seen.failed += not data.startswith(b"HTTP/1.1 200")
        self.seen.events += data.count(b"\n\n")
        self.tail = (self.tail + data)[-64:] if len(data) < 64 else data[-64:]
        if self.ends in self.tail:
            self.seen.answers += 1
            if not self.stopped:
                self.then()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.stopped:
            self.seen.failed += 1
            if self.then != self.ask:
                self.then()

    def stop(self) -> None:
        self.stopped = True
        self.transport.abort()


def _messages(path: str, *, whole: bool = False) -> list[bytes]:
    """What one connection asks in turn."""
    return [request(path, whole=whole) for _ in range(MESSAGES)]


def _ends(path: str) -> bytes:
    """The last bytes of an answer; of one without end, bytes that never come."""
    if path == ENDING_STREAM or "?events=" in path:
        return DONE + b"\r\n0\r\n\r\n"
    return SHORT[-32:] if path == COMPLETION else b"\0"


async def burst(port: int, path: str, count: int, bursts: int, *, fresh: bool) -> Seen:
    """So many requests at once, so often. `fresh`: on new connections each time, else on those of a burst before."""
    seen, warm, done = Seen(), Seen(), asyncio.Semaphore(0)
    asking = await _ask_at_once(port, path, count, warm, done.release)
    for _ in range(bursts):
        for _ in range(count):
            await done.acquire()
        if fresh:
            _stop(asking)
            asking = await _ask_at_once(port, path, count, seen, done.release)
            continue
        for one in asking:
            one.seen = seen
            one.ask()
    for _ in range(count):
        await done.acquire()
    _stop(asking)
    return seen


async def _ask_at_once(port: int, path: str, count: int, seen: Seen, then: Callable[[], None]) -> list[Asking]:
    loop = asyncio.get_running_loop()
    made = [
        loop.create_connection(lambda: Asking(_messages(path), _ends(path), seen, then), "127.0.0.1", port)
        for _ in range(count)
    ]
    return [one for _, one in await asyncio.gather(*made)]


def _stop(asking: list[Asking]) -> None:
    for one in asking:
        one.stop()


async def load(
    port: int,
    path: str,
    connections: int,
    seconds: float,
    *,
    warm_s: float = 1.0,
    mark: Callable[[], None],
    whole: bool = False,
) -> Seen:
    """So many connections for so long. The first `warm_s` count for nothing; `mark` is called at their end.

    `whole`: what can be had as a stream or whole is asked for whole.
    """
    loop = asyncio.get_running_loop()
    ends = WHOLE[-32:] if whole else _ends(path)
    seen = Seen()
    asking = []
    for _ in range(connections):
        messages = _messages(path, whole=whole)
        _, one = await loop.create_connection(lambda sent=messages: Asking(sent, ends, seen), "127.0.0.1", port)
        asking.append(one)
    await asyncio.sleep(warm_s)
    counted = Seen()
    for one in asking:
        one.seen = counted
    mark()
    await asyncio.sleep(seconds)
    for one in asking:
        one.stop()
    return counted
