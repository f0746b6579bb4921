"""Log lines come in order and whole, and whoever does not read them holds up nobody."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest

from uellm.proxying import log_writer
from uellm.proxying.log_writer import MOST_LINES, DroppedLines, LogWriter, log_line


@pytest.fixture
def pipe() -> Iterator[tuple[TextIO, TextIO]]:
    """Its ends for reading and for writing."""
    read, write = os.pipe()
    with os.fdopen(read, encoding="utf-8") as reader, os.fdopen(write, "w", encoding="utf-8") as writer:
        yield reader, writer


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.Logger("of a test")
    yield logger
    for handler in logger.handlers:
        handler.close()


def test_lines_come_in_their_order_and_all_of_them_by_the_end(log: logging.Logger, pipe: tuple[TextIO, TextIO]) -> None:
    reader, stream = pipe
    writer = LogWriter(stream, "stdout")
    log.addHandler(writer)
    for number in range(1000):
        log.info("line %d", number)
    writer.close()
    assert writer.dropped == 0
    assert [reader.readline() for _ in range(1000)] == [f"line {number}\n" for number in range(1000)]


def test_lines_that_nobody_reads_are_dropped_and_counted_and_no_caller_waits(
    log: logging.Logger, pipe: tuple[TextIO, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "LAST_S", 0.05)
    reader, stream = pipe
    writer = LogWriter(stream, "stdout")
    log.addHandler(writer)
    line, logged = "x" * 1000, MOST_LINES + 2000
    finished = threading.Event()

    def log_all() -> None:
        for _ in range(logged):
            log.info(line)
        finished.set()

    threading.Thread(target=log_all, daemon=True).start()
    assert finished.wait(60.0), "a caller waits for a reader"
    metric = DroppedLines("uellm_log_lines_dropped_total", log)
    assert f'uellm_log_lines_dropped_total{{stream="stdout"}} {writer.dropped}' in list(metric.lines())
    assert 1000 < writer.dropped < 2000
    # Once somebody reads, every line that was not dropped comes, and whole.
    assert {reader.readline() for _ in range(logged - writer.dropped)} == {line + "\n"}


def test_what_cannot_be_encoded_or_written_ends_no_later_line(
    log: logging.Logger, pipe: tuple[TextIO, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, stream = pipe
    writer = LogWriter(stream, "stdout")
    log.addHandler(writer)
    write, full = os.write, iter([OSError(28, "No space left on device")])

    def once_full(descriptor: int, content: bytes) -> int:
        for error in full:
            raise error
        return write(descriptor, content)

    failed = threading.Event()
    monkeypatch.setattr(
        log_writer, "_write", lambda descriptor, content: (failed.set(), once_full(descriptor, content))
    )
    log.info("lost")
    assert failed.wait(10.0)
    log.info("\ud800")
    assert reader.readline() == "\\ud800\n"


def others(log: logging.Logger, writer: LogWriter) -> None:
    log.addHandler(logging.NullHandler())


def filtered(log: logging.Logger, writer: LogWriter) -> None:
    writer.addFilter(lambda record: record.getMessage() != "not this one")


def formatted(log: logging.Logger, writer: LogWriter) -> None:
    writer.setFormatter(logging.Formatter("%(levelname)s %(message)s"))


@pytest.mark.parametrize("configure", [lambda log, writer: None, others, filtered, formatted])
def test_a_log_of_ready_lines_is_configured_as_any_other(
    log: logging.Logger, pipe: tuple[TextIO, TextIO], configure: Callable[[logging.Logger, LogWriter], None]
) -> None:
    reader, stream = pipe
    writer = LogWriter(stream, "stdout")
    writer.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(writer)
    log.propagate = False
    configure(log, writer)
    log_line(log, lambda: "with 100 %")
    log_line(log, lambda: "not this one")
    log.disabled = True
    log_line(log, lambda: "never made")
    writer.close()
    stream.close()
    expected = ["with 100 %", *(["not this one"] if configure is not filtered else [])]
    assert reader.read().splitlines() == [f"INFO {line}" if configure is formatted else line for line in expected]


def test_a_line_reaches_whichever_handlers_the_log_has(log: logging.Logger) -> None:
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log.addHandler(Collector())
    log_line(log, lambda: "a line")
    assert lines == ["a line"]


PROGRAM = """
import logging, sys
from uellm.proxying.process import log_as_json
access = logging.getLogger("access")
log_as_json(access)
for number in range(int(sys.argv[1])):
    access.info("line %d of the access log", number)
    logging.getLogger("other").info("another line")
"""


@pytest.mark.parametrize("lines", [3, 500])
def test_a_process_that_ends_has_written_its_lines_each_to_its_stream(lines: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(lines)], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout.splitlines() == [f"line {number} of the access log" for number in range(lines)]
    assert ended.stderr.count('"message": "another line"') == len(ended.stderr.splitlines()) == lines


def test_a_process_whose_lines_nobody_reads_ends_all_the_same() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "20000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.wait(120) == 0
