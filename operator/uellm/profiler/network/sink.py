"""The end that is asked: it takes bytes and drops them, for other profilers alone."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress

from uellm.errors import CannotBeDone
from uellm.profiler.network.gate import NetworkGate
from uellm.profiler.network.peers import plain
from uellm.profiler.network.wire import BUSY, CHUNK_BYTES, DONE, GO, LIMIT_S, MOST_BYTES, PINGS, UNKNOWN, limit

logger = logging.getLogger(__name__)
_BACKLOG = 16


class Sink:
    """Listens at one address, in threads of its own, until it is closed. Raises CannotBeDone where the port is taken.

    `host`: None for every address of the machine; `port` 0: any free one.
    """

    def __init__(self, host: str | None, port: int, gate: NetworkGate, *, limit_s: float = LIMIT_S) -> None:
        self.known: frozenset[str] = frozenset()
        """Addresses that may ask."""
        self.stranger: Callable[[], None] = lambda: None
        """Called from another thread when a connection came from another address."""
        self._gate = gate
        self._limit_s = limit_s
        self._closed = False
        try:
            self._socket = _listening(host, port)
        except OSError as error:
            where = f"{host or 'all addresses'} port {port}"
            raise CannotBeDone(f"network: cannot listen on {where}: {error.strerror}; choose another port") from error
        threading.Thread(target=self._accept, name="network sink", daemon=True).start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Take no further connections."""
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, address = self._socket.accept()
            except OSError as error:
                if not self._closed:
                    logger.warning("network: cannot accept a connection: %s", error.strerror)
                    time.sleep(1)  # such as for want of file descriptors: at once it would fail again
                continue
            connection.settimeout(self._limit_s)
            who = plain(address[0])
            if who in self.known and self._gate.enter(who):
                self._start(connection)
                continue
            with closing(connection), suppress(OSError):
                connection.sendall(BUSY if who in self.known else UNKNOWN)
            if who not in self.known:
                self.stranger()

    def _start(self, connection: socket.socket) -> None:
        try:
            threading.Thread(target=self._take, args=(connection,), name="network stream", daemon=True).start()
        except (OSError, RuntimeError) as error:  # can't start new thread
            logger.warning("network: cannot serve a connection: %s", error)
            connection.close()
            self._gate.leave()

    def _take(self, connection: socket.socket) -> None:
        try:
            with closing(connection), suppress(OSError):
                _drop_all(connection, time.monotonic() + self._limit_s)
        finally:
            self._gate.leave()


def _drop_all(connection: socket.socket, deadline: float) -> None:
    """Answer one connection. Raises OSError where it breaks or takes too long; too many bytes end it unanswered."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(GO)
    for _ in range(PINGS):
        limit(connection, deadline)
        connection.sendall(connection.recv(1))
    buffer, taken = bytearray(CHUNK_BYTES), 0
    while taken <= MOST_BYTES:
        limit(connection, deadline)
        count = connection.recv_into(buffer)
        if not count:
            connection.sendall(DONE)
            return
        taken += count


def _listening(host: str | None, port: int) -> socket.socket:
    if host is None and socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    family = socket.AF_INET6 if host and ":" in host else socket.AF_INET
    return socket.create_server((host or "", port), family=family, backlog=_BACKLOG)
