"""What the launchers of a group say to each other: JSON documents, one a line, over connections that stay open."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_LINE_BYTES = 4 << 20
# A node that vanishes says nothing: the kernel finds it out by these, in 25 s.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class PeerGone(Exception):
    """The other end said nothing in time, said something else, or has gone."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by which the group must have agreed."""

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """From now on."""
        return cls(time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        """Never 0, which would mean not to wait at all."""
        return max(0.001, self.at_s - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self.at_s


class Connection:
    """One end of a connection between two launchers."""

    def __init__(self, sock: socket.socket) -> None:
        for option in _KEEPALIVE:
            sock.setsockopt(*option)
        self.socket = sock
        self._rest = b""

    def send(self, document: Mapping[str, Any], deadline: Deadline) -> None:
        """Raises PeerGone."""
        try:
            self.socket.settimeout(deadline.left_s)
            self.socket.sendall(json.dumps(document, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            raise PeerGone(str(error)) from error

    def receive(self, deadline: Deadline) -> dict[str, Any]:
        """The next document. Raises PeerGone."""
        while b"\n" not in self._rest:
            if len(self._rest) > LONGEST_LINE_BYTES:
                raise PeerGone("it sent a line without an end")
            try:
                self.socket.settimeout(deadline.left_s)
                data = self.socket.recv(65536)
            except TimeoutError as error:
                raise PeerGone("it did not answer in time") from error
            except OSError as error:
                raise PeerGone(str(error)) from error
            if not data:
                raise PeerGone("it closed the connection")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            document = json.loads(line)
        except ValueError as error:
            raise PeerGone("it sent no JSON") from error
        if not isinstance(document, dict):
            raise PeerGone("it sent no document")
        return document

    def close(self) -> None:
        """Close it."""
        self.socket.close()
