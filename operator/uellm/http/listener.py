"""Accepts connections in batches: libuv accepts one per loop iteration, so a burst would wait long under load."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable

LOG = logging.getLogger("uellm.http")

BACKLOG = 4096
AT_ONCE = 64
"""Connections accepted per iteration: enough for a burst, few enough not to delay the open streams."""

NO_FAMILY = frozenset((errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT))
"""What a kernel without IPv6, or without IPv4, answers."""

HANDSHAKE_S = 10.0
"""How long a TLS handshake may take."""

RETRY_S = 1.0
"""Pause after an error, such as running out of file descriptors."""


class Listener:
    """Listening sockets; each connection gets a protocol of its own from `factory`."""

    def __init__(self, factory: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None = None) -> None:
        self._factory = factory
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._beginning: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int) -> int:
        """Listen on every address of the name; return the port (0 picks a free one). Raises OSError.

        An empty name: every address of the machine, of IPv4 and IPv6, as far as it has them.
        """
        found = await self._loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        missing: OSError | None = None
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            try:
                port = self._bind(family, (address[0], port, *address[2:]))
            except OSError as error:
                if host or error.errno not in NO_FAMILY:
                    self.close()
                    raise
                missing = error
        if missing is not None and not self._sockets:
            raise missing
        return port

    def _bind(self, family: int, address: tuple[object, ...]) -> int:
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
        self._sockets.append(listening)
        self._loop.add_reader(listening.fileno(), self._take, listening)
        port: int = listening.getsockname()[1]
        return port

    def _take(self, listening: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                LOG.error("cannot accept connections: %s; trying again in %g s", error.strerror, RETRY_S)
                self._later(listening)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._begin(connection))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            if self._tls is None:
                await self._loop.connect_accepted_socket(self._factory, connection)
            else:
                await self._loop.connect_accepted_socket(
                    self._factory, connection, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_S
                )
        except OSError:
            connection.close()  # the client has already disconnected, or does not speak TLS

    def _later(self, listening: socket.socket) -> None:
        self._loop.remove_reader(listening.fileno())
        self._loop.call_later(RETRY_S, self._again, listening)

    def _again(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening.fileno(), self._take, listening)

    def close(self) -> None:
        """Stop accepting."""
        for listening in self._sockets:
            self._loop.remove_reader(listening.fileno())
            listening.close()
        self._sockets.clear()
