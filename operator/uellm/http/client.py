"""A pool of keep-alive connections to the server that requests are forwarded to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from uellm.http.client_connection import ClientConnection
from uellm.http.message import Pairs, lines_of
from uellm.http.upstream import EngineUnreachable, Upstream

CONNECT_TIMEOUT_S = 10.0
"""Longer than a health check: an engine with a full backlog is silent, not gone."""

SILENCE_PARTS = 5
"""Parts of the time for a connection, each of which begins with a look at the network."""

IDLE_S = 2.0
"""vLLM closes connections that were idle for 5 s; a request sent at that moment would be lost."""

PROBES = 3
"""Packets without an answer after which a silent machine counts as gone."""

RECEIVE_BUFFER_BYTES = 64 * 1024
"""Receive buffer in the kernel, which also bounds one read from the socket."""


_SocketAddress = tuple[int, tuple[Any, ...]]
"""Family, and what `connect` takes."""


@dataclass(frozen=True)
class EngineAddress:
    """Where the engine listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> EngineAddress:
        """`http://127.0.0.1:8001`. Raises ValueError for anything that is more than scheme, host and port."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(url)
        if parts.username is not None:
            raise ValueError(url)
        return cls(parts.hostname, 80 if parts.port is None else parts.port)

    async def resolve(self) -> list[_SocketAddress]:
        """Socket addresses. An IP address is used without a resolver, so without a thread. Raises OSError."""
        if (known := _family_of(self.host)) is not None:
            return [(known, (self.host, self.port))]
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]


@lru_cache(maxsize=16)
def _family_of(host: str) -> int | None:
    """The family of an IP address; None: it is a name."""
    try:
        return socket.AF_INET if ipaddress.ip_address(host).version == 4 else socket.AF_INET6
    except ValueError:
        return None


class EnginePool:
    """Connections to one server."""

    def __init__(
        self,
        address: EngineAddress,
        *,
        idle_s: float = IDLE_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        dead_peer_s: float | None = None,
    ) -> None:
        """`dead_peer_s`: a machine that answers no packet for so long counts as gone; None: the kernel's own time."""
        self._address = address
        self._idle_s = idle_s
        self._connect_timeout_s = connect_timeout_s
        self._dead_peer_s = dead_peer_s
        self._idle: list[ClientConnection] = []
        """The least recently used first."""
        self._unsent: list[ClientConnection] = []
        """Those whose request is sent at the end of this turn of the event loop."""
        self._sweep: asyncio.TimerHandle | None = None
        """One alarm for all idle connections: it looks at the oldest."""
        self.connections: set[ClientConnection] = set()

    @property
    def in_use(self) -> int:
        """Connections with a request in progress."""
        return len(self.connections) - len(self._idle)

    async def send(
        self, method: str, target: bytes, headers: Pairs, body: bytes, *, switches: bool = False
    ) -> Upstream:
        """Send a request; return when the head of the answer is there. Raises EngineUnreachable, EngineLost.

        `headers` contains neither Content-Length nor Transfer-Encoding: `body` is complete. The caller reads the answer
        to its end or aborts it. `switches`: the headers ask for another protocol. If the answer is 101, its body is
        what the server sends in that protocol, and `Upstream.write` sends to the server.
        """
        connection = self._rested() or await self._connect()
        lines, hosted = lines_of(headers, b"host")
        if not hosted:
            lines += f"Host: {self._address.host}:{self._address.port}\r\n".encode()
        if body or method in ("POST", "PUT", "PATCH"):
            lines += b"Content-Length: %d\r\n" % len(body)
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode("ascii"), target, lines)
        upstream = connection.ask(head, body, head_only=method == "HEAD", switches=switches)
        try:
            await upstream.head()
        except BaseException:
            upstream.abort()
            raise
        return upstream

    def close(self) -> None:
        """Cut every connection."""
        for connection in tuple(self.connections):
            connection.cut()

    def send_soon(self, connection: ClientConnection) -> None:
        """Send its request after all that is ready to run now.

        A burst is then worked through before the first of its requests wakes the engine, which may take our processor,
        and without a system call between two of them, which leaves the caches cold.
        """
        if not self._unsent:
            connection.loop.call_soon(self._send_all)
        self._unsent.append(connection)

    def give_back(self, connection: ClientConnection) -> None:
        """Return a connection to the pool."""
        loop = connection.loop
        connection.idle_since_s = loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(self._idle_s, self._close_idle, loop)

    def forget(self, connection: ClientConnection) -> None:
        """Remove a closed connection."""
        self.connections.discard(connection)
        if connection.idle_since_s is not None:
            self._idle.remove(connection)
            connection.idle_since_s = None

    def _send_all(self) -> None:
        unsent, self._unsent = self._unsent, []
        for connection in unsent:
            connection.send()

    def _rested(self) -> ClientConnection | None:
        """The most recently used idle connection, because it stays open longest."""
        while self._idle:
            connection = self._idle.pop()
            connection.idle_since_s = None
            if not connection.closed:
                return connection
        return None

    def _close_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections that were idle for too long, and look again when the oldest of the others will be."""
        self._sweep = None
        while self._idle:
            left_s = (self._idle[0].idle_since_s or 0.0) + self._idle_s - loop.time()
            if left_s > 0.0:
                self._sweep = loop.call_later(left_s, self._close_idle, loop)
                return
            connection = self._idle.pop(0)
            connection.idle_since_s = None
            connection.transport.close()

    async def _connect(self) -> ClientConnection:
        loop, connection = asyncio.get_running_loop(), ClientConnection(self)
        try:
            async with _silence(self._connect_timeout_s):
                connected = await _first(await self._address.resolve(), self._dead_peer_s)
                await loop.create_connection(lambda: connection, sock=connected)
        except (OSError, TimeoutError) as error:
            self._give_up(connection)
            raise EngineUnreachable(type(error).__name__) from error
        except asyncio.CancelledError:
            self._give_up(connection)
            raise
        return connection

    def _give_up(self, connection: ClientConnection) -> None:
        """Forget a connection that nobody waits for any more: uvloop closes it and does not tell it that it is lost."""
        connection.closed = True
        self.connections.discard(connection)


@asynccontextmanager
async def _silence(most_s: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, but a time in which our own loop stood still counts as no more than one of its parts.

    After such a time alarms go off first, and only then is it seen what has come from the network meanwhile.
    """
    loop, part_s = asyncio.get_running_loop(), most_s / SILENCE_PARTS

    def look(parts_left: int) -> None:
        if parts_left:
            alarms.append(loop.call_later(part_s, look, parts_left - 1))
        else:
            limit.reschedule(loop.time())

    alarms = [loop.call_later(part_s, look, SILENCE_PARTS - 1)]
    try:
        async with asyncio.timeout(None) as limit:
            yield
    finally:
        alarms[-1].cancel()


def _connects_at_once(connecting: socket.socket, address: tuple[Any, ...]) -> bool:
    """Begin to connect; whether the connection is there already, as it nearly always is on loopback. Raises OSError."""
    for _ in range(2):  # the first call begins, the second one tells
        with suppress(BlockingIOError):
            connecting.connect(address)
            return True
    return False


def _notice_death(connected: socket.socket, dead_peer_s: float) -> None:
    """Let the kernel end the connection to a machine that is silent, whether data is under way or not."""
    milliseconds = round(dead_peer_s * 1000)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval_s = max(1, round(dead_peer_s / PROBES))
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
        connected.setsockopt(socket.IPPROTO_TCP, option, interval_s)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


async def _first(addresses: Sequence[_SocketAddress], dead_peer_s: float | None) -> socket.socket:
    """A socket connected to the first address that takes it. Raises OSError."""
    refused: OSError | None = None
    for family, address in addresses:
        connecting = socket.socket(family, socket.SOCK_STREAM)
        connecting.setblocking(False)
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if dead_peer_s is not None:
            _notice_death(connecting, dead_peer_s)
        try:
            if not _connects_at_once(connecting, address):
                await asyncio.get_running_loop().sock_connect(connecting, address)
        except OSError as error:
            refused = error
            connecting.close()
        except BaseException:
            connecting.close()
            raise
        else:
            return connecting
    raise refused or OSError("no address")
