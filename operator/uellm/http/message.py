"""What server and client share: headers, limits, and the word for a peer's fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Pairs = Sequence[tuple[bytes, bytes]]
"""Header fields in their order, as they are on the wire."""


def pairs(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Header fields of our own as they go on the wire."""
    return [(name.encode("latin-1"), value.encode()) for name, value in headers.items()]


KIB = 1024
MIB = 1024 * KIB


class Fault(Exception):
    """What a client sent cannot be taken; `status` is the answer to it. The text quotes nothing of the request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class RequestLimits:
    """Bounds on what a client may send and how long it may take. Bytes and seconds."""

    line_bytes: int = 8 * KIB
    headers_bytes: int = 16 * KIB
    body_bytes: int = 10 * MIB
    ahead_bytes: int = 64 * KIB
    """What a client may send ahead of its next request; beyond it the socket is left alone until that one's turn."""
    header_deadline_s: float = 10.0
    """From a connection's first moment, or the next request's first byte, to the end of its head."""
    body_deadline_s: float = 30.0
    idle_s: float = 75.0
    linger_s: float = 2.0
    """How long what a client still sends is read and dropped after an answer that did not wait for it."""
    flush_s: float = 60.0
    """How long the rest of an answer may take to leave once its connection is to close."""
    connections: int = 20_000


class Budget:
    """Bytes that all requests together may hold in memory."""

    def __init__(self, limit_bytes: int = 256 * MIB) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Whether there is room for so many more; if so they count until they are given back."""
        if self.held_bytes + size_bytes > self.limit_bytes:
            return False
        self.held_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """So many are not held any more."""
        self.held_bytes -= size_bytes


class Headers:
    """Header fields: `raw` has them in their order and as they were sent; the rest reads them by name."""

    __slots__ = ("_first", "raw")

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw
        self._first: dict[bytes, bytes] | None = None

    def get(self, name: str, default: str | None = None) -> str | None:
        """The first field of that name, however it is capitalised."""
        value = self._index().get(name.lower().encode("latin-1"))
        return default if value is None else value.decode("utf-8", "surrogateescape")

    def get_all(self, name: str) -> list[str]:
        """Every field of that name."""
        wanted = name.lower().encode("latin-1")
        if wanted not in self._index():
            return []
        return [value.decode("utf-8", "surrogateescape") for field, value in self.raw if field.lower() == wanted]

    def __contains__(self, name: str) -> bool:
        return name.lower().encode("latin-1") in self._index()

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def _index(self) -> dict[bytes, bytes]:
        if self._first is None:
            self._first = {name.lower(): value for name, value in reversed(self.raw)}
        return self._first
