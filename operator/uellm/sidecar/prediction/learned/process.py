"""The child process of the learned model: started, watched, and restarted with a backoff."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from uellm.sidecar.prediction.learned.frames import HEADER, FrameKind, frame, header

LOG = logging.getLogger("uellm.sidecar")

COMMAND = (sys.executable, "-P", "-m", "uellm.sidecar.prediction.learned.child")

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
STEADY_S = 300.0
"""After a run of this length the backoff starts again from the first pause."""

MOST_UNREAD_BYTES = 1024 * 1024
"""Unread bytes in the pipe at most; further frames are dropped."""

_ALONE = "only the online predictor is used"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Child:
    """At most one process, running while it is `wanted`. `took` gets its frames; `lost` is called when it ends."""

    def __init__(
        self,
        took: Callable[[FrameKind, bytes], None],
        lost: Callable[[], None],
        *,
        command: Sequence[str] = COMMAND,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._took = took
        self._lost = lost
        self._command = command
        self._first_pause_s = first_pause_s
        self._wanted = asyncio.Event()
        self._process: Process | None = None
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Process id; None: it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def wanted(self) -> bool:
        """Whether the process should run."""
        return self._wanted.is_set()

    @wanted.setter
    def wanted(self, wanted: bool) -> None:
        if wanted:
            self._wanted.set()
        elif self.wanted:
            self._wanted.clear()
            self.kill()

    def send(self, kind: FrameKind, content: bytes) -> bool:
        """Send a frame without waiting; False: it was dropped."""
        stdin = None if self._process is None else self._process.stdin
        if stdin is None or stdin.is_closing() or stdin.transport.get_write_buffer_size() > MOST_UNREAD_BYTES:
            return False
        stdin.write(frame(kind, content))
        return True

    def kill(self) -> None:
        """Kill the process; it is restarted if it is wanted."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def run(self) -> None:
        """Keep the process running while it is wanted, until cancelled; the process has ended by then."""
        loop = asyncio.get_running_loop()
        pause_s = self._first_pause_s
        while True:
            await self._wanted.wait()
            if find_spec("lightgbm") is None:
                LOG.warning("lengths: the learned model needs lightgbm, extra `predictor`; %s", _ALONE)
                return
            begun_s = loop.time()
            end = await self._live()
            if loop.time() - begun_s > STEADY_S:
                pause_s = self._first_pause_s
            if self.wanted:
                if pause_s == self._first_pause_s:
                    LOG.warning("lengths: the learned model's process %s; until it is restarted, %s", end, _ALONE)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _live(self) -> str:
        """Run one process to its end; return how it ended, for the log."""
        self.starts += 1
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, env=os.environ | _ONE_THREAD
            )
        except OSError as error:
            return f"cannot be started ({error.strerror})"
        self._process = process
        try:
            await self._read(process)
        finally:
            self.kill()
            self._process = None
            self._lost()
            await _close(process)
        return "ended"

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                try:
                    size, kind = header(await process.stdout.readexactly(HEADER.size))
                except ValueError:
                    return
                self._took(kind, await process.stdout.readexactly(size))


async def _close(process: Process) -> None:
    """Wait until the process and its pipes are closed, even if this wait is cancelled."""
    closing = asyncio.ensure_future(_gone(process))
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await closing
        raise


async def _gone(process: Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    # Not `communicate`: on uvloop it does not return for a process that was killed just before.
    process.stdin.close()
    with contextlib.suppress(ConnectionError):
        await process.stdout.read()
    await process.wait()
