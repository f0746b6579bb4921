"""Recognises one complete chunk of HTTP's chunked coding without a parser.

A server that streams an answer sends each piece as a chunk without extensions, and each usually arrives in one read.
Length, begin and end of such data show that it is exactly one chunk. All other data goes to the parser.
"""

from __future__ import annotations

from collections.abc import Iterator

END = b"\r\n"
BLANK = b"\n\n"
"""End of an event."""

BLANK_END = BLANK + END
"""End of a chunk that ends with a whole event."""

EVENTS_END = b"}" + BLANK_END
"""End of a chunk that consists of whole server-sent events with JSON data."""

MOST_BYTES = 4096
"""Longer chunks go to the parser, whose cost is small beside theirs."""

NO_LINE = b"\n"
"""No chunk begins with this."""


def _size_lines() -> Iterator[tuple[int, bytes]]:
    for size in range(1, MOST_BYTES):
        line = b"%x\r\n" % size
        yield len(line) + size + len(END), line


SIZE_LINES = dict(_size_lines())
"""By the length of a chunk, framing and all, its size line in the plainest form. Data of that length that begins with
it and ends with `END` is one whole chunk: no two sizes make chunks of the same length."""
