"""The launcher as the first process of a container, simulated by a process that is told that it is the first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from uellm.launcher import init

FIRST = "from uellm.launcher.init import stand_by; stand_by(first=True); import os; "
LOADING = FIRST + "print(os.getpid(), flush=True); import signal; signal.pause()"


@pytest.fixture
def start() -> Iterator:
    started: list[subprocess.Popen] = []

    def start(program: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_signal_ends_an_engine_that_has_no_handler_yet(start):
    process = start(LOADING)
    engine = int(process.stdout.readline())
    assert engine != process.pid
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)


@pytest.mark.parametrize("status", [0, 1, 77])
def test_it_ends_with_the_status_of_the_engine(start, status):
    assert start(FIRST + f"raise SystemExit({status})").wait(10) == status


def test_the_engine_may_take_its_time_after_the_signal(start):
    # The signal is blocked until the wait, so that it is not lost if it arrives before.
    program = FIRST + "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [15]); print('up', flush=True); "
    process = start(program + "signal.sigwait([15]); print('draining', flush=True); print('done', flush=True)")
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "draining\ndone\n"
    assert process.wait(10) == 0


def test_it_collects_what_lost_its_parent_and_goes_on(start):
    # PR_SET_CHILD_SUBREAPER (36) reparents orphans to this process, although it is not the first.
    orphan = "import ctypes; ctypes.CDLL(None).prctl(36, 1); " + FIRST
    program = orphan + "import sys; middle = os.fork(); middle or (os.fork() and os._exit(0)); "
    program += "middle and (os.waitpid(middle, 0), sys.exit(7)); os._exit(3)"
    assert start(program).wait(10) == 7


def test_another_process_than_the_first_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("it forked"))
    init.stand_by()
