"""The cluster's processes: started detached, found again later, and ended with all their descendants.

Every process has the cluster's directory in its environment. Children inherit it, so everything that the cluster
started is found in /proc by this mark, even if a kill came between a start and its record. A container's processes have
an environment of their own; they are found by their cgroup instead (`cgroups`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from uellm_devcluster.errors import ClusterError
from uellm_devcluster.state import State

MARK = "UELLM_DEVCLUSTER"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_POLL_S = 0.03
_TAIL_LINES = 8


def environment(state: State, binaries: Path) -> dict[str, str]:
    """A component's environment: the mark and a path. No proxy, because its peers are on this machine."""
    return {
        MARK: str(state.directory),
        "PATH": f"{binaries}:{_SYSTEM_PATH}",
        "HOME": str(state.directory),
        "LANG": "C.UTF-8",
    }


def ensure(state: State, name: str, argv: list[str], *, binaries: Path) -> None:
    """Start `argv` as the component `name` in its own session, with its output in its log, unless it already runs."""
    if pid_of(state, name):
        return
    with state.log(name).open("ab") as log:
        process = subprocess.Popen(
            argv,
            env=environment(state, binaries),
            cwd=state.directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C must reach only the command, which ends its components in order.
            start_new_session=True,
        )
    state.pid_file(name).write_text(f"{process.pid} {_started(process.pid)}\n")


def tied_to_parent(argv: list[str]) -> list[str]:
    """`argv` as a command that the kernel kills when the thread that started it ends for any reason."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *argv]


def pid_of(state: State, name: str) -> int | None:
    """The process that runs as component `name`, or None when it has ended, even if its number has been reused."""
    try:
        pid, started = state.pid_file(name).read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(pid) if started != "0" and _started(int(pid)) == int(started) else None


def components(state: State) -> list[str]:
    """Names of all components that were started, in the order of their start."""
    directory = state.directory / "pid"
    if not directory.is_dir():
        return []
    return [path.name for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)]


def marked(directory: Path) -> set[int]:
    """All running processes with the mark of the cluster in `directory`."""
    needle = f"{MARK}={directory}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        if needle in _environ(entry).split(b"\0") and _started(int(entry.name)):
            found.add(int(entry.name))
    return found


def _environ(process: Path) -> bytes:
    """A process's environment, read from any thread that still has it; empty where none can be read."""
    for path in (process / "environ", *process.glob("task/*/environ")):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if text := path.read_bytes():
                return text
    return b""


def end_all(find: Callable[[], Iterable[int]], *, timeout_s: float = 15.0) -> None:
    """Kill what `find` returns until it returns nothing twice: a process may start another while it is being killed.

    One look at /proc may miss a process that is just being executed. There is no graceful shutdown: a development
    cluster's state is deleted with it.
    """
    deadline_s, empty_looks = time.monotonic() + timeout_s, 0
    while empty_looks < 2:
        pids = set(find()) - {os.getpid()}
        empty_looks = 0 if pids else empty_looks + 1
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            _reap(pid)
        if pids and time.monotonic() > deadline_s:
            raise ClusterError(f"processes {sorted(pids)} do not end after SIGKILL; they may be waiting for a disk")
        time.sleep(_POLL_S)


def wait_until(ready: Callable[[], bool], *, state: State, names: list[str], timeout_s: float) -> None:
    """Wait until `ready`. All components called `names` must keep running meanwhile; a timeout is blamed on the first.

    Raises ClusterError with the end of the log of the component at fault.
    """
    deadline_s = time.monotonic() + timeout_s
    while not ready():
        for name in names:
            if not pid_of(state, name):
                raise ClusterError(f"{name} ended during its start\n{tail(state, name)}")
        if time.monotonic() > deadline_s:
            raise ClusterError(f"{names[0]} is not ready after {timeout_s:.0f} s\n{tail(state, names[0])}")
        time.sleep(_POLL_S)


def tail(state: State, name: str) -> str:
    """The last lines of a component's log, and the log's path."""
    path = state.log(name)
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    return "\n".join([f"  end of {path}:", *(f"  | {line[:300]}" for line in lines[-_TAIL_LINES:])])


def _started(pid: int) -> int:
    """When a process started, in clock ticks after boot; 0 for one that has ended, including a zombie."""
    try:
        # The name in parentheses may itself contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    # Of a process that was killed, the first thread may have ended while others are still at work in the kernel.
    ended = fields[0] in "ZX" and int(fields[17]) <= 1
    return 0 if ended else int(fields[19])


def _reap(pid: int) -> None:
    """Reap a child process of ours. init reaps those of earlier commands."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
