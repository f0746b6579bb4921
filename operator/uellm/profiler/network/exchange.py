"""The end that asks: how long a byte takes to another node and back, and how many get there in a second.

All times are this end's own, from the first byte until the other end has confirmed the last. So a peer that lies can
make the network look slower than it is, but not faster.
"""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from uellm.profiler.network.wire import (
    BUSY,
    CHUNK_BYTES,
    DONE,
    GO,
    GREETING_BYTES,
    LIMIT_S,
    MOST_BYTES,
    PING,
    PINGS,
    SEND_S,
    STREAMS,
    UNKNOWN,
    limit,
)


class NetworkFigures(NamedTuple):
    """What was measured."""

    bytes_per_s: float
    round_trip_s: float


class NoFigures(Exception):
    """Nothing was measured: why, in words that follow the name of a node."""


def measured(address: str, port: int, *, send_s: float = SEND_S, limit_s: float = LIMIT_S) -> NetworkFigures:
    """The network to the sink at an IP address. Takes `limit_s` at most. Raises NoFigures."""
    deadline = time.monotonic() + limit_s
    with ExitStack() as stack:
        try:
            streams, trips_s = [], list[float]()
            for _ in range(STREAMS):
                streams.append(stack.enter_context(_connected(address, port, deadline)))
                trips_s += _trips_s(streams[-1], deadline)
            return NetworkFigures(_bytes_per_s(streams, send_s, deadline), statistics.median(trips_s))
        except TimeoutError:
            raise NoFigures(
                f"{address} port {port} does not answer in time: does a NetworkPolicy or firewall block it?"
            ) from None
        except RuntimeError as error:
            raise NoFigures(f"this node: {error}") from None  # can't start new thread
        except OSError as error:
            raise NoFigures(f"{address} port {port}: {(error.strerror or str(error)).lower()}") from None


def _connected(address: str, port: int, deadline: float) -> socket.socket:
    """A connection on which the sink has said that it is free. Raises NoFigures and OSError."""
    connection = socket.create_connection((address, port), timeout=max(0.01, deadline - time.monotonic()))
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = b""
        while len(greeting) < GREETING_BYTES:
            limit(connection, deadline)
            if not (part := connection.recv(GREETING_BYTES - len(greeting))):
                break
            greeting += part
        if greeting != GO:
            raise NoFigures(_refused(greeting, f"{address} port {port}"))
    except BaseException:
        connection.close()
        raise
    return connection


def _refused(greeting: bytes, where: str) -> str:
    if greeting == BUSY:
        return f"{where} is busy with another measurement"
    if greeting == UNKNOWN:
        return (
            f"{where} does not know this node's address: its profiler is about to find it, or something between the "
            "nodes translates addresses"
        )
    return f"{where} is not a profiler of this version"


def _trips_s(stream: socket.socket, deadline: float) -> list[float]:
    found = []
    for _ in range(PINGS):
        limit(stream, deadline)
        start = time.perf_counter()
        stream.sendall(PING)
        if stream.recv(1) != PING:
            raise ConnectionError("broke off")
        found.append(time.perf_counter() - start)
    return found


def _bytes_per_s(streams: Sequence[socket.socket], send_s: float, deadline: float) -> float:
    """Of all streams together, from a common start until the last has been confirmed."""
    chunk, start = os.urandom(CHUNK_BYTES), time.monotonic()
    ends: list[tuple[int, float]] = []
    errors: list[OSError] = []

    def send(stream: socket.socket) -> None:
        try:
            sent = _sent(stream, chunk, start + send_s, deadline)
            ends.append((sent, time.monotonic()))
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=send, args=(each,), name="network", daemon=True) for each in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # each call of theirs ends with the deadline
    if errors:
        raise errors[0]
    return sum(sent for sent, _ in ends) / (max(end for _, end in ends) - start)


def _sent(stream: socket.socket, chunk: bytes, until: float, deadline: float) -> int:
    """The bytes that the other end has confirmed."""
    sent = 0
    while sent == 0 or (time.monotonic() < until and sent + len(chunk) <= MOST_BYTES):
        limit(stream, deadline)
        stream.sendall(chunk)
        sent += len(chunk)
    stream.shutdown(socket.SHUT_WR)
    limit(stream, deadline)
    if stream.recv(1) != DONE:
        raise ConnectionError("broke off")
    return sent
