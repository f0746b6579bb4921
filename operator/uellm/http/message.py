"""What server and client share: headers, limits, the memory budget, and a client's fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Pairs = Sequence[tuple[bytes, bytes]]
"""Header fields in their order, as they are on the wire."""


def pairs(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Header fields of our own in their form on the wire."""
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def lines_of(fields: Pairs, sought: bytes) -> tuple[bytes, bool]:
    """The lines of a head, and whether one of them has the name `sought`, which is in lower case."""
    parts: list[bytes] = []
    found, size = False, len(sought)
    for name, value in fields:
        parts += (name, b": ", value, b"\r\n")
        if len(name) == size and name.lower() == sought:
            found = True
    return b"".join(parts), found


KIB = 1024
MIB = 1024 * KIB


class Fault(Exception):
    """A client's request is refused with `status`. The message quotes nothing of the request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class RequestLimits:
    """Bounds on what a client may send and how long it may take. Bytes and seconds."""

    line_bytes: int = 65 * KIB
    """vLLM's parser takes targets of up to 65,534 bytes."""
    headers_bytes: int = 4 * MIB
    """vLLM's `--h11-max-incomplete-event-size`."""
    headers: int = 1024
    """Number of header fields."""
    body_bytes: int = 256 * MIB
    """vLLM has no limit of its own, so a body may take all the memory that there is for bodies."""
    body_bytes_of: dict[str, int] = field(default_factory=dict)
    """Other limits by path."""
    ahead_bytes: int = 64 * KIB
    """Bytes a client may send during a request for the next one; beyond that the socket is not read. A longer head
    counts in the memory budget."""
    header_deadline_s: float = 10.0
    """From the request's first byte to the end of its head."""
    body_deadline_s: float = 30.0
    """For a body. A longer one has more time while it arrives at `body_bytes_per_s` or faster."""
    body_bytes_per_s: float = 64.0 * KIB
    idle_s: float = 4200.0
    """How long a connection may be unused. Load balancers keep theirs for up to 4000 s, and should close first."""
    linger_s: float = 5.0
    """After an answer that was sent before the request was complete, further data is read and dropped until the client
    closes, or sends nothing for this long, or is slower than a body may be, or has sent `linger_bytes`."""
    linger_bytes: int = 1024 * MIB
    flush_s: float = 60.0
    """How long sending the rest of an answer may take before its connection is closed."""
    connections: int = 20_000


class Budget:
    """Bytes that all requests together may hold in memory."""

    def __init__(self, limit_bytes: int = 256 * MIB) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Reserve bytes until they are given back; False: no room for them."""
        if self.held_bytes + size_bytes > self.limit_bytes:
            return False
        self.held_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Return reserved bytes."""
        self.held_bytes -= size_bytes


_MOST_KEYS = 256
_KEYS: dict[str, bytes] = {}
"""Names as `Headers` compares them. The code asks for the same few names at every request."""


def _key(name: str) -> bytes:
    """A name as `Headers` compares it, which is kept if it is one of the first."""
    key = name.lower().encode("latin-1")
    if len(_KEYS) < _MOST_KEYS:
        _KEYS[name] = key
    return key


class Headers:
    """Header fields: `raw` has them in order and as sent; the methods read them by name."""

    __slots__ = ("_first", "raw")

    def __init__(self, raw: list[tuple[bytes, bytes]], first: dict[bytes, bytes] | None = None) -> None:
        """`first`: the first value of each name in lower case, in the order of `raw`, if that is known already."""
        self.raw = raw
        self._first = first

    def get(self, name: str, default: str | None = None) -> str | None:
        """The first field of that name, in any case."""
        first = self._first
        value = (self._index() if first is None else first).get(_KEYS.get(name) or _key(name))
        if value is None:
            return default
        return value.decode() if value.isascii() else value.decode("utf-8", "surrogateescape")

    def get_all(self, name: str) -> list[str]:
        """Every field of that name."""
        first, wanted = self._first, _KEYS.get(name) or _key(name)
        if wanted not in (self._index() if first is None else first):
            return []
        return [value.decode("utf-8", "surrogateescape") for field, value in self.raw if field.lower() == wanted]

    def has_any(self, names: frozenset[bytes]) -> bool:
        """Whether there is a field of one of these names, which are in lower case."""
        first = self._first
        return not names.isdisjoint(self._index() if first is None else first)

    def without(self, names: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
        """The fields in their order, except those of these names, which are in lower case."""
        first, raw = self._first, self.raw
        if first is None:
            first = self._index()
        if len(first) == len(raw):  # no name comes twice, so that both have the same order
            return [raw[place] for place, name in enumerate(first) if name not in names]
        return [field for field in raw if field[0].lower() not in names]

    def __contains__(self, name: str) -> bool:
        first = self._first
        return (_KEYS.get(name) or _key(name)) in (self._index() if first is None else first)

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def _index(self) -> dict[bytes, bytes]:
        if self._first is None:
            first = {name.lower(): value for name, value in self.raw}
            if len(first) < len(self.raw):  # some names come twice
                for name, value in reversed(self.raw):
                    first[name.lower()] = value
            self._first = first
        return self._first
