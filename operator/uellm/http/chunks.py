"""One whole chunk of HTTP's chunked coding, told without a parser.

A server that sends an answer piece by piece puts each into a chunk of the plainest form, and each arrives in one read.
That such data is one whole chunk and nothing else shows in its length and its two ends. Whatever else comes is for the
parser to read.
"""

from __future__ import annotations

from collections.abc import Iterator

END = b"\r\n"
EVENTS_END = b"}\n\n" + END
"""How a chunk ends that consists of whole server-sent events of JSON."""

MOST_BYTES = 4096
"""Longer ones go to the parser: what it takes is little beside them."""

NO_LINE = b"\n"
"""What no chunk begins with."""


def _size_lines() -> Iterator[tuple[int, bytes]]:
    for size in range(1, MOST_BYTES):
        line = b"%x\r\n" % size
        yield len(line) + size + len(END), line


SIZE_LINES = dict(_size_lines())
"""By the length of a chunk, framing and all, its size line in the plainest form. Data of that length that begins with
it and ends with `END` is one whole chunk: no two sizes make chunks of the same length."""
