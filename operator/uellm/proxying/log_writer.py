"""Log lines are written by a thread of their own, so that whoever does not read them holds up no request.

A pipe that nobody empties, a log driver that hangs or a full disk lets a write wait for any time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from time import sleep
from typing import TextIO

from uellm.proxying.metrics import Counter

MOST_LINES = 10_000
"""Lines that may wait to be written: some megabytes. Further ones are dropped and counted."""
MOST_TOGETHER = 500
"""Lines that are written in one go: 25,000 a second at most."""
PAUSE_S = 0.02
"""Between two writes: to wake the thread for each line would cost the event loop more than the line."""
LAST_S = 2.0
"""How long the last lines may take at the end of the process."""
_MESSAGE = "%(message)s"
"""The format of a formatter that adds nothing."""


class LogWriter(logging.Handler):
    """Gives lines to a thread that writes them to a stream's file descriptor."""

    def __init__(self, stream: TextIO, stream_name: str) -> None:
        super().__init__()
        self.stream_name = stream_name
        self.dropped = 0
        """Lines that were not written, because nobody read the ones before."""
        self.adds_nothing = True
        """A line is its record's message and no more."""
        self._stream = stream
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._ended = False

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 - the name is the base class's
        """Format records with this, or as their messages alone."""
        super().setFormatter(fmt)
        self.adds_nothing = fmt is None or (type(fmt) is logging.Formatter and fmt._fmt == _MESSAGE)

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self.put(line)

    def put(self, line: str) -> None:
        """Write a line as it is. Never waits."""
        if self._ended or self._lines.qsize() >= MOST_LINES:
            self.dropped += 1
            return
        self._lines.put(line)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        self.acquire()
        try:
            if self._thread is None:
                self._thread = Thread(target=self._write_all, name="log", daemon=True)
                self._thread.start()
        finally:
            self.release()

    def close(self) -> None:
        """Write what waits, as long as somebody reads it. `logging` calls this at the end of the process."""
        super().close()
        if self._thread is not None and not self._ended:
            self._ended = True
            self._lines.put(None)
            self._thread.join(LAST_S)

    def _write_all(self) -> None:
        while (together := self._next()) is not None:
            with suppress(OSError):  # nobody will ever read them: the pipe is closed, or the disk is full
                _write(self._stream.fileno(), together)
            if not self._ended:
                sleep(PAUSE_S)

    def _next(self) -> bytes | None:
        """The lines that wait, or the next one; None: there will be none."""
        lines = [self._lines.get()]
        with suppress(Empty):
            while lines[-1] is not None and len(lines) < MOST_TOGETHER:
                lines.append(self._lines.get_nowait())
        if lines[-1] is None and len(lines) > 1:
            self._lines.put(None)
        text = "".join([f"{line}\n" for line in lines if line is not None])
        return text.encode("utf-8", "backslashreplace") or None


def log_line(log: logging.Logger, line: Callable[[], str]) -> None:
    """Log a line, if the log is on.

    `Logger.info` would also look up the place in the source. A single `LogWriter` gets the line itself: a record of it,
    and what formats and passes it on, cost more than all the rest.
    """
    if not log.isEnabledFor(logging.INFO):
        return
    if (writer := _only_writer(log)) is not None:
        writer.put(line())
    else:
        log.handle(logging.LogRecord(log.name, logging.INFO, "", 0, line(), None, None))


def _only_writer(log: logging.Logger) -> LogWriter | None:
    """The writer that is all that a log's lines go to, if it writes all of them as they are."""
    if log.propagate or log.filters or len(log.handlers) != 1:
        return None
    handler = log.handlers[0]
    if type(handler) is not LogWriter or not handler.adds_nothing or handler.filters or handler.level > logging.INFO:
        return None
    return handler


class DroppedLines(Counter):
    """The metric that counts them, by stream."""

    def __init__(self, name: str, access_log: logging.Logger) -> None:
        super().__init__(name, "Log lines that were dropped, because nobody read the ones before.", "stream")
        self._loggers = (logging.getLogger(), access_log)

    def lines(self) -> Iterator[str]:
        """Its lines, HELP and TYPE included."""
        for logger in self._loggers:
            for handler in logger.handlers:
                if isinstance(handler, LogWriter):
                    self._values[(handler.stream_name,)] = handler.dropped
        return super().lines()


def _write(descriptor: int, content: bytes) -> None:
    # Not by the stream itself: its buffer's lock would be waited for at the end of the process.
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
