"""The engine's output on its way to the log: passed on at once, and the last lines kept."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable

LINES_KEPT = 200
"""Of each of the engine's processes: with many ranks one's traceback would push another's out."""
PROCESSES_KEPT = 128
_LONGEST_LINE_BYTES = 8192
_LINE_END = re.compile(rb"[\r\n]")
_PROCESS = re.compile(r"^(?:\x1b\[[0-9;]*m)*(\([^()]{1,64} pid=\d+\))")


class LastLines:
    """The last lines of each process, in the order in which they came."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[tuple[int, str]]] = {}
        self._count = 0

    def add(self, line: str) -> None:
        """Keep a line that is not blank."""
        if not line.strip():
            return
        match = _PROCESS.match(line)
        whose = match[1] if match else ""
        if whose not in self._kept and len(self._kept) >= PROCESSES_KEPT:
            del self._kept[min(self._kept, key=lambda name: self._kept[name][-1][0])]
        self._kept.setdefault(whose, deque(maxlen=LINES_KEPT)).append((self._count, line))
        self._count += 1

    def all(self) -> list[str]:
        """What is kept, the oldest first."""
        return [line for _, line in sorted(each for lines in self._kept.values() for each in lines)]


class Tee:
    """Passes one stream on, byte for byte, and its lines to `on_line`."""

    def __init__(self, source: int, target: int, on_line: Callable[[str], None]) -> None:
        self.source = source
        self._target = target
        self._on_line = on_line
        self._rest = b""

    def pump(self) -> bool:
        """Pass on what is there now. False at the end of the stream. `source` must not block."""
        try:
            data = os.read(self.source, 65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        _write(self._target, data)
        *lines, rest = _LINE_END.split(self._rest + data)
        self._rest = rest[-_LONGEST_LINE_BYTES:]
        for line in lines:
            self._on_line(line[-_LONGEST_LINE_BYTES:].decode(errors="replace"))
        return bool(data)

    def finish(self) -> None:
        """The stream is over: its last line may have no end."""
        if self._rest:
            self._on_line(self._rest.decode(errors="replace"))
            self._rest = b""


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
