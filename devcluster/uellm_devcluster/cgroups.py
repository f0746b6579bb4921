"""The cluster's control groups. They contain everything that it started, so it can be found again after a crash.

    /uellm-<name>/system       the control plane, containerd, kubelet, kube-proxy
    /uellm-<name>/node-1 ...   what the node's kubelet starts: the pods

Version 1 has one directory in each hierarchy, version 2 has one in all.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from uellm_devcluster.errors import ClusterError

ROOT = Path("/sys/fs/cgroup")
SYSTEM = "system"
# The kernel needs a moment to release a hierarchy after its last process has been reaped.
_REMOVE_TIMEOUT_S = 10.0
# The controllers that a kubelet requires in its group. Version 2 delegates them level by level.
_CONTROLLERS = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")


class Cgroups:
    """The control groups of the cluster `name`."""

    def __init__(self, name: str, *, root: Path = ROOT) -> None:
        self._root = root
        self._name = f"uellm-{name}"

    @property
    def unified(self) -> bool:
        """Whether this machine has only version 2."""
        return (self._root / "cgroup.controllers").exists()

    def group(self, part: str) -> str:
        """The path of a group inside the hierarchies, such as `/uellm-demo/node-1`."""
        return f"/{self._name}/{part}"

    def create(self, parts: list[str]) -> None:
        """Create the groups. Existing ones are left unchanged."""
        for hierarchy in self._hierarchies():
            top = hierarchy / self._name
            try:
                top.mkdir(exist_ok=True)
                self._delegate(hierarchy, top)
                for part in parts:
                    (top / part).mkdir(exist_ok=True)
                    _copy_cpuset(top, top / part)
            except OSError as error:
                raise ClusterError(
                    f"no control group can be made in {hierarchy}: {error.strerror}; nodes need a writable "
                    "/sys/fs/cgroup (in a container: run it privileged, with a cgroup namespace of its own)"
                ) from error

    def joining(self, argv: list[str]) -> list[str]:
        """`argv` as a command that first enters the system group."""
        files = [str(hierarchy / self._name / SYSTEM / "cgroup.procs") for hierarchy in self._hierarchies()]
        script = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ > "$1" || exit; shift; n=$((n-1)); done; exec "$@"'
        return ["sh", "-c", script, "sh", str(len(files)), *files, *argv]

    def members(self) -> set[int]:
        """All processes in the cluster's groups."""
        pids: set[int] = set()
        for hierarchy in self._hierarchies():
            for group in _tree(hierarchy / self._name):
                with contextlib.suppress(OSError):  # the group disappeared with its last process
                    pids.update(int(pid) for pid in (group / "cgroup.procs").read_text().split())
        return pids

    def remove(self) -> None:
        """Remove the groups, which must be empty."""
        deadline_s = time.monotonic() + _REMOVE_TIMEOUT_S
        while left := [path for hierarchy in self._hierarchies() for path in _tree(hierarchy / self._name)]:
            for path in left:
                with contextlib.suppress(OSError):
                    path.rmdir()
            if time.monotonic() > deadline_s:
                raise ClusterError(f"control group {left[0]} cannot be removed: a process in it does not end")
            time.sleep(0.02)

    def _hierarchies(self) -> list[Path]:
        if self.unified:
            return [self._root]
        # Names such as `cpu` may be links to `cpu,cpuacct`.
        candidates = {path.resolve() for path in self._root.iterdir() if path.is_dir()}
        return sorted(path for path in candidates if (path / "cgroup.procs").exists())

    def _delegate(self, hierarchy: Path, top: Path) -> None:
        if not self.unified:
            _copy_cpuset(hierarchy, top)
            return
        offered = (hierarchy / "cgroup.controllers").read_text().split()
        wanted = " ".join(f"+{controller}" for controller in _CONTROLLERS if controller in offered)
        for level in (hierarchy, top):
            (level / "cgroup.subtree_control").write_text(wanted)


def _copy_cpuset(parent: Path, child: Path) -> None:
    """Version 1: a group without CPUs and memory nodes of its own accepts no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        with contextlib.suppress(FileNotFoundError):
            if not (child / name).read_text().strip():
                (child / name).write_text((parent / name).read_text())


def _tree(top: Path) -> list[Path]:
    """A group and its descendants, deepest first."""
    if not top.is_dir():
        return []
    return [Path(directory) for directory, _, _ in os.walk(top, topdown=False)]
