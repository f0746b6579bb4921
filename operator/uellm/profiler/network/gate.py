"""One measurement at a time on a node: its own, or that of one other profiler. Others would share its network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from uellm.profiler.network.wire import STREAMS

OWN = ""
"""The node's own profiler."""
PAUSE_S = 10.0
"""Between two measurements of the same other asker, whatever came of the first: so much of the network stays free."""


class NetworkGate:
    """Who measures now. Safe for use by several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._holder = ""
        self._streams = 0
        self._ended: dict[str, float] = {}

    def enter(self, who: str) -> bool:
        """Let a connection in. False: somebody measures already, or the same asker has just done so."""
        with self._lock:
            if self._streams == 0:
                if self._clock() - self._ended.get(who, -PAUSE_S) < PAUSE_S:
                    return False
                self._holder = who
            elif self._holder != who or self._streams == STREAMS:
                return False
            self._streams += 1
            return True

    def leave(self) -> None:
        """A connection that was let in has ended."""
        with self._lock:
            self._streams -= 1
            if self._streams == 0 and self._holder != OWN:
                now = self._clock()
                self._ended = {who: at for who, at in self._ended.items() if now - at < PAUSE_S} | {self._holder: now}
