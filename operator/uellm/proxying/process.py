"""A proxy's process: where it listens, its garbage collector, file descriptors, signals and logs."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import resource
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from uellm.errors import BadInput
from uellm.proxying.log_writer import LogWriter

COLLECT_AFTER = 20_000
"""Objects more than before until the youngest generation is looked through; Python's own value is 700."""


@dataclass(frozen=True)
class Address:
    """Where to listen. Port 0: any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, field: str) -> Address:
        """`127.0.0.1:8000`, `[::1]:8000`, or `:8000` for every address of IPv4 and IPv6. Raises BadInput."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65535:
            raise BadInput(field, f"{text!r} is not HOST:PORT, such as 127.0.0.1:8000")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))


class Ending:
    """SIGTERM and SIGINT: the first one asks the process to end, the second one to end at once."""

    def __init__(self) -> None:
        self._asked, self._again = asyncio.Event(), asyncio.Event()
        self._received: list[signal.Signals] = []
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._receive, number)

    async def first(self) -> signal.Signals:
        """Wait for the first signal."""
        await self._asked.wait()
        return self._received[0]

    async def unless_again(self, work: Coroutine[Any, Any, object]) -> None:
        """Do the work, but drop it at the second signal."""
        done, hurried = asyncio.create_task(work), asyncio.create_task(self._again.wait())
        await asyncio.wait((done, hurried), return_when=asyncio.FIRST_COMPLETED)
        for task in (done, hurried):
            task.cancel()

    def _receive(self, number: signal.Signals) -> None:
        self._received.append(number)
        (self._again if self._asked.is_set() else self._asked).set()


def prepare() -> None:
    """Spare the garbage collector, take all the file descriptors that may be had, and keep log lines cheap."""
    _spare_the_collector()
    _raise_file_limit()
    # No line shows which thread and process wrote it, and to find out costs each line some calls.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(line)


def log_as_json(access_log: logging.Logger) -> None:
    """Write the access log unchanged to standard output, everything else to standard error. No line is waited for."""
    general = LogWriter(sys.stderr, "stderr")
    general.setFormatter(_JsonLine())
    logging.basicConfig(level=logging.INFO, handlers=[general])
    access = LogWriter(sys.stdout, "stdout")
    access.setFormatter(logging.Formatter("%(message)s"))
    access_log.addHandler(access)
    access_log.propagate = False


def _spare_the_collector() -> None:
    """What is there at the start stays, and requests leave few cycles behind: the collector need not look so often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def _raise_file_limit() -> None:
    """Every request has two sockets: take all the descriptors that may be had."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
