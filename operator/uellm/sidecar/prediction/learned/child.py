"""The learned model's process: keeps rows of the last requests, trains on them at intervals, and answers.

`python -m uellm.sidecar.prediction.learned.child` reads frames from its standard input and writes frames to its
standard output until the input ends, which happens when the sidecar ends for any reason. Any failure ends the process;
the sidecar starts another one.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from uellm.sidecar.prediction.learned import forest
from uellm.sidecar.prediction.learned.frames import HEADER, FrameKind, content, frame, header

if TYPE_CHECKING:
    from lightgbm import Booster

ROWS = 20_000
FIRST_ROWS = 1_000
"""Rows before the first training."""

EVERY_ROWS = 2_000
NICENESS = 10
MOST_BYTES = 4 * 1024**3
"""Limit on address space, most of which is never touched: about 0.25 GB are used at most."""


class Ring:
    """The rows of the last `ROWS` requests: 21 MB."""

    def __init__(self) -> None:
        self._rows = np.zeros((ROWS, forest.NUMBERS + forest.WORDS), np.float32)
        self._lengths = np.zeros(ROWS, np.float32)
        self.seen = 0

    def add(self, rows: forest.Matrix, lengths: forest.Matrix) -> None:
        """Add rows; the oldest are overwritten."""
        at = (self.seen + np.arange(len(rows))) % ROWS
        self._rows[at], self._lengths[at] = rows, lengths
        self.seen += len(rows)

    def copy(self) -> tuple[forest.Matrix, forest.Matrix]:
        """A copy of all rows, for the training thread."""
        count = min(self.seen, ROWS)
        return self._rows[:count].copy(), self._lengths[:count].copy()


class LearnedModelServer:
    """Answers in one thread and trains in another; the previous model answers during a training."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests = requests
        self._answers = answers
        self._writing = threading.Lock()
        self._ring = Ring()
        self._model: Booster | None = None
        self._learner: threading.Thread | None = None
        self._learned_at = 0

    def serve(self) -> None:
        """Serve until the input ends."""
        while head := self._requests.read(HEADER.size):
            size, kind = header(head)
            rows, lengths = forest.matrix(self._requests.read(size))
            if kind is FrameKind.ASK:
                self._answer(rows)
            else:
                self._ring.add(rows, lengths)
                self._learn()

    def _answer(self, rows: forest.Matrix) -> None:
        begun = time.thread_time()
        model = self._model
        forecasts = [float("nan")] * len(rows) if model is None else forest.predict(model, rows)
        self._write(FrameKind.ANSWER, [time.thread_time() - begun, *forecasts])

    def _learn(self) -> None:
        """Start a training if there are enough new rows and none is running."""
        enough = EVERY_ROWS if self._learned_at else FIRST_ROWS
        busy = self._learner is not None and self._learner.is_alive()
        if busy or self._ring.seen - self._learned_at < enough:
            return
        self._learned_at = self._ring.seen
        self._learner = threading.Thread(target=_or_die, args=(self._train, *self._ring.copy()), daemon=True)
        self._learner.start()

    def _train(self, rows: forest.Matrix, lengths: forest.Matrix) -> None:
        begun = time.thread_time()
        self._model = forest.train(rows, lengths)
        self._write(FrameKind.TRAINED, [float(len(rows)), time.thread_time() - begun, float(_resident_bytes())])

    def _write(self, kind: FrameKind, values: list[float]) -> None:
        with self._writing:
            self._answers.write(frame(kind, content(values)))
            self._answers.flush()


def _or_die(work: object, *arguments: object) -> None:
    assert callable(work)
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _yield_to_others() -> None:
    """Lower priority than sidecar and engine, for processor time and for the OOM killer."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    """Serve; exits without waiting for a training in progress."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _yield_to_others()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's print must not end up between frames
    _or_die(LearnedModelServer(sys.stdin.buffer, answers).serve)
    os._exit(0)


if __name__ == "__main__":
    main()
