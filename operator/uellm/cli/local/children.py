"""Child processes that end together, with their output as one log.

Each child leads its own session: a Ctrl-C at the terminal only reaches this process, which then ends the children in
order. A child's remaining processes are found by its process group.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

# The engine lets open streams finish for 20 s, then frees its workers.
END_TIMEOUT_S = 35.0
# Time to read the output of a process that has ended. It takes longer only if a process outside its group holds the
# pipe.
OUTPUT_TIMEOUT_S = 2.0
LONGEST_LINE = 65536

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ChildCommand:
    """A command to start, and the name under which its lines appear."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Ended:
    """A child that has ended. `status` as in `subprocess`: negative for a signal."""

    name: str
    status: int

    @property
    def how(self) -> str:
        """`with exit status 1`, `by SIGKILL`."""
        return f"by {signal.Signals(-self.status).name}" if self.status < 0 else f"with exit status {self.status}"


class Children:
    """An async context manager. On exit every child has ended, even if the body failed.

    `say(name, line)` is called for every line of their output.
    """

    def __init__(self, say: Callable[[str, str], None], *, end_timeout_s: float = END_TIMEOUT_S) -> None:
        self._say = say
        self._end_timeout_s = end_timeout_s
        self._processes: dict[str, Process] = {}
        self._relays: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()

    async def __aenter__(self) -> Children:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def start(self, command: ChildCommand) -> None:
        """Start a child. Raises OSError if its program cannot be run."""
        # A pipe of our own: with asyncio's, `wait` would wait for everyone who holds it, including workers that outlive
        # a killed engine.
        reader, writer = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                env=dict(command.environment),
                stdin=DEVNULL,
                stdout=writer,
                stderr=STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._processes[command.name] = process
        self._relays.append(asyncio.create_task(self._relay(command.name, reader)))

    async def first_end(self) -> Ended:
        """Wait until one of the children ends."""
        names = list(self._processes)
        waits = [asyncio.create_task(self._processes[name].wait()) for name in names]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return next(Ended(name, wait.result()) for name, wait in zip(names, waits, strict=True) if wait.done())
        finally:
            for wait in waits:
                wait.cancel()

    def hurry(self) -> None:
        """Make all children end without finishing their requests."""
        self._hurry.set()

    async def _end(self) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                process.terminate()
        gone = asyncio.create_task(self._all_gone())
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((gone, hurried), timeout=self._end_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        # Also after a clean end, because an engine that was killed leaves its workers.
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await gone
        hurried.cancel()
        if self._relays:
            await asyncio.wait(self._relays, timeout=OUTPUT_TIMEOUT_S)
        for relay in self._relays:
            relay.cancel()

    async def _all_gone(self) -> None:
        for process in self._processes.values():
            await process.wait()

    async def _relay(self, name: str, pipe: int) -> None:
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(pipe, "rb", buffering=0)
        )
        try:
            await self._relay_lines(name, stream)
        finally:
            transport.close()

    async def _relay_lines(self, name: str, stream: asyncio.StreamReader) -> None:
        held = b""
        while data := await stream.read(LONGEST_LINE):
            *lines, held = (held + data).split(b"\n")
            if len(held) >= LONGEST_LINE:
                lines, held = [*lines, held], b""
            for line in lines:
                self._tell(name, line)
        if held:
            self._tell(name, held)

    def _tell(self, name: str, line: bytes) -> None:
        self._say(name, line.decode(errors="replace").rstrip("\r"))


def _end_with_parent() -> None:
    """Runs in the child: asks the kernel to kill it when its parent is killed."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
