"""Reads the load of one replica: a stream of lines on its metrics port, which costs nothing while nothing changes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable

from uellm.api.replica_load import ReplicaLoad
from uellm.errors import UellmError
from uellm.http import EngineAddress, EngineLost, EnginePool, EngineUnreachable
from uellm.pod_interface import LOAD_PATH

FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 5.0
SILENCE_S = 5.0
"""A sidecar writes at least once a second, so one that is silent for so long is gone."""
LINE_BYTES = 256 * 1024
"""A longer line is not a report."""
PAUSE_S = 0.05
"""Least time between two reads. An honest sidecar writes every 0.2 s; any other one must not occupy the gateway."""
MOST_LINES = 64
"""Lines of one read: what gathers while the gateway reads nothing for more than ten seconds."""

KEPT_BYTES = 4096
"""The last line is kept up to this length. Longer ones have news of prefixes, so the next one differs."""


class _Silent(Exception):
    """The replica has no such stream, or sends something else."""


class LoadReader:
    """Follows one replica. `known` tells how many prefixes its reader has; `report` takes each load."""

    def __init__(self, address: EngineAddress, known: Callable[[], int], report: Callable[[ReplicaLoad], None]) -> None:
        self._pool = EnginePool(address, connect_timeout_s=1.0)
        self._known = known
        self._report = report
        self._rest = b""
        self._last: tuple[bytes, ReplicaLoad] | None = None
        self._failures = 0

    async def run(self) -> None:
        """Follow it until cancelled."""
        try:
            while True:
                try:
                    await self._follow()
                except (EngineLost, EngineUnreachable, TimeoutError, _Silent):
                    self._failures += 1
                delay_s = min(FIRST_DELAY_S * 2.0 ** min(self._failures, 10), LONGEST_DELAY_S)
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
        finally:
            self._pool.close()

    async def _follow(self) -> None:
        self._rest = b""
        target = f"{LOAD_PATH}?prefixes={self._known()}".encode()
        async with asyncio.timeout(SILENCE_S) as silence:
            upstream = await self._pool.send("GET", target, [], b"")
            try:
                if upstream.status != 200:
                    raise _Silent
                while piece := await upstream.next_piece():
                    silence.reschedule(asyncio.get_running_loop().time() + SILENCE_S)
                    self._take(piece)
                    await asyncio.sleep(PAUSE_S)
            finally:
                upstream.abort()

    def _take(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LINE_BYTES or len(lines) > MOST_LINES:
            raise _Silent
        for line in lines:
            self._report(self._load(line))
            self._failures = 0

    def _load(self, line: bytes) -> ReplicaLoad:
        """A line's load. A quiet replica writes equal lines, and to parse them would be most of the work."""
        if self._last is not None and self._last[0] == line:
            return self._last[1]
        try:
            load = ReplicaLoad.from_dict(json.loads(line))
        except (ValueError, RecursionError, UellmError):
            raise _Silent from None
        self._last = (line, load) if len(line) <= KEPT_BYTES else None
        return load
