from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from uellm_devcluster import processes
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.state import State

BIN = Path("/bin")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State("demo", base=tmp_path)
    made.make()
    yield made
    processes.end_all(lambda: processes.marked(made.directory))


def test_a_component_is_known_by_name_until_it_ends(state: State) -> None:
    processes.ensure(state, "etcd", ["sleep", "100"], binaries=BIN)
    pid = processes.pid_of(state, "etcd")
    assert pid
    assert processes.components(state) == ["etcd"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: processes.pid_of(state, "etcd") is None)


def test_a_component_that_runs_is_not_started_again(state: State) -> None:
    processes.ensure(state, "etcd", ["sleep", "100"], binaries=BIN)
    pid = processes.pid_of(state, "etcd")
    processes.ensure(state, "etcd", ["sleep", "100"], binaries=BIN)
    assert processes.pid_of(state, "etcd") == pid
    until(lambda: len(processes.marked(state.directory)) == 1)


LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(100,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_whose_first_thread_has_ended_is_still_found_and_ended(state: State) -> None:
    processes.ensure(state, "etcd", [sys.executable, "-c", LEADERLESS], binaries=BIN)
    pid = processes.pid_of(state, "etcd")
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert processes.pid_of(state, "etcd") == pid
    assert processes.marked(state.directory) == {pid}
    processes.end_all(lambda: processes.marked(state.directory))
    assert processes.pid_of(state, "etcd") is None


def test_another_process_with_the_same_number_is_not_taken_for_it(state: State) -> None:
    state.pid_file("etcd").write_text(f"{os.getpid()} 12345\n")
    assert processes.pid_of(state, "etcd") is None


def test_a_components_descendants_are_found_by_their_mark_without_a_record(state: State) -> None:
    processes.ensure(state, "etcd", ["sh", "-c", "sleep 100 & sleep 100"], binaries=BIN)
    until(lambda: len(processes.marked(state.directory)) == 3)
    pid = processes.pid_of(state, "etcd")
    state.pid_file("etcd").unlink()
    assert pid in processes.marked(state.directory)


def test_nothing_of_another_cluster_is_found(state: State, tmp_path: Path) -> None:
    processes.ensure(state, "etcd", ["sleep", "100"], binaries=BIN)
    assert processes.marked(tmp_path / "demo-2") == set()
    assert processes.marked(tmp_path) == set()


def test_the_end_is_the_end_of_all_children(state: State) -> None:
    processes.ensure(state, "etcd", ["sh", "-c", "while :; do sleep 0.01 & sleep 0.01; done"], binaries=BIN)
    processes.end_all(lambda: processes.marked(state.directory))
    assert processes.marked(state.directory) == set()


def test_a_component_gets_no_proxy_from_the_environment(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.1:1")
    processes.ensure(state, "etcd", ["env"], binaries=BIN)
    until(lambda: "LANG" in state.log("etcd").read_text())
    assert "HTTPS_PROXY" not in state.log("etcd").read_text()


def test_a_failing_component_is_reported_with_the_end_of_its_log(state: State) -> None:
    processes.ensure(state, "kwok", ["sleep", "100"], binaries=BIN)
    processes.ensure(state, "etcd", ["sh", "-c", "echo address already in use; exit 3"], binaries=BIN)
    with pytest.raises(ClusterError, match=r"(?s)etcd ended during.*\| address already in use"):
        processes.wait_until(lambda: False, state=state, names=["kwok", "etcd"], timeout_s=20)


def test_a_component_that_is_never_ready_is_reported_after_its_time(state: State) -> None:
    processes.ensure(state, "etcd", ["sleep", "100"], binaries=BIN)
    with pytest.raises(ClusterError, match="etcd is not ready after 0 s"):
        processes.wait_until(lambda: False, state=state, names=["etcd"], timeout_s=0.0)


def test_a_tied_component_ends_with_the_process_that_started_it(state: State) -> None:
    script = (
        "import os, sys; from pathlib import Path; from uellm_devcluster import processes; "
        "from uellm_devcluster.state import State; state = State('demo', base=Path(sys.argv[1])); "
        "processes.ensure(state, 'etcd', processes.tied_to_parent(['sleep', '100']), binaries=Path('/bin')); "
        "print(processes.pid_of(state, 'etcd'), flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(state.directory.parent)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        parent.kill()
    until(lambda: processes.marked(state.directory) == set())


def until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
