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


def test_an_engine_that_hangs_after_the_signal_is_killed(start):
    hangs = FIRST.replace("first=True", "first=True, ends_in_s=0.2")
    hangs += "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
    process = start(hangs)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGKILL


def test_it_reaps_orphans_and_goes_on(start):
    # PR_SET_CHILD_SUBREAPER (36) reparents orphans to this process, although it is not the first.
    orphan = "import ctypes; ctypes.CDLL(None).prctl(36, 1); " + FIRST
    program = orphan + "import sys; middle = os.fork(); middle or (os.fork() and os._exit(0)); "
    program += "middle and (os.waitpid(middle, 0), sys.exit(7)); os._exit(3)"
    assert start(program).wait(10) == 7


def test_another_process_than_the_first_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("it forked"))
    init.stand_by()


FAILING = """
from pathlib import Path
from uellm.launcher.init import stand_by
stand_by(first={first}, serve={serve}, termination_log=Path({log!r}))
import sys
print('loading', flush=True)
print('(EngineCore pid=7) ERROR 11-28 10:00:00 [core.py:1] ValueError: Free memory on device is less', file=sys.stderr)
raise SystemExit({status})
"""


@pytest.fixture
def log(tmp_path):
    """What the kubelet mounts: a file that is there and empty."""
    path = tmp_path / "termination-log"
    path.touch()
    return path


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)


def test_the_cause_and_the_last_lines_go_to_the_termination_log(log):
    done = run(FAILING.format(first=True, serve=None, log=str(log), status=1))
    assert done.returncode == 1
    cause, blank, *last = log.read_text().splitlines()
    assert cause == "uellm launcher: EngineFailed: ValueError: Free memory on device is less"
    assert blank == ""
    assert set(last) >= {"loading"}


def test_the_output_passes_through_as_it_is_each_stream_by_itself(log):
    done = run(FAILING.format(first=True, serve=None, log=str(log), status=1))
    assert done.stdout == "loading\n"
    assert done.stderr.startswith("(EngineCore pid=7) ERROR")


def test_an_engine_that_ends_well_leaves_no_message(log):
    assert run(FAILING.format(first=True, serve=None, log=str(log), status=0)).returncode == 0
    assert log.read_text() == ""


def test_the_launchers_own_message_is_kept(log):
    log.write_text("uellm launcher: NoFit: no device holds layer 3\n")
    run(FAILING.format(first=True, serve=None, log=str(log), status=1))
    assert log.read_text() == "uellm launcher: NoFit: no device holds layer 3\n"


def test_a_process_that_is_to_answer_probes_stays_behind_even_if_it_is_not_the_first(log):
    done = run(FAILING.format(first=False, serve="lambda: print('probes', flush=True)", log=str(log), status=1))
    assert "probes" in done.stdout
    assert "Free memory" in log.read_text()


def test_a_signal_that_ends_a_silent_engine_is_named(log):
    program = "from pathlib import Path; from uellm.launcher.init import stand_by; import os, signal; "
    program += f"stand_by(first=True, termination_log=Path({str(log)!r})); os.kill(os.getpid(), signal.SIGKILL)"
    assert run(program).returncode == 128 + signal.SIGKILL
    assert log.read_text().strip() == (
        "uellm launcher: EngineFailed: it was ended by SIGKILL, most likely because memory ran out"
    )


def test_an_engine_that_is_stopped_has_not_failed(start, log):
    program = "from pathlib import Path; from uellm.launcher.init import stand_by; import signal; "
    program += f"stand_by(first=True, termination_log=Path({str(log)!r})); print('up', flush=True); signal.pause()"
    process = start(program)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    assert log.read_text() == ""


def test_the_message_fits_the_kubelets_limit():
    lines = [f"line {number} {'x' * 200}" for number in range(100)]
    written = init.message(lines, 1)
    assert len(written) <= init.MESSAGE_BYTES
    assert written.decode().splitlines()[-1] == lines[-1]
