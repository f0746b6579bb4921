from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from uellm_devcluster.cgroups import Cgroups
from uellm_devcluster.errors import ClusterError


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """A directory tree in the form of version 1: hierarchies by controller, one of them with two names."""
    for name in ("cpuset", "cpu,cpuacct", "pids"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").write_text("1\n")
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    (tmp_path / "cpuset" / "cpuset.cpus").write_text("0-3\n")
    (tmp_path / "cpuset" / "cpuset.mems").write_text("0\n")
    (tmp_path / "not-a-hierarchy").mkdir()
    return tmp_path


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids rdma\n")
    (tmp_path / "cgroup.procs").write_text("1\n")
    return tmp_path


def groups(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir() and "uellm-" in str(path)}


def test_version_1_has_the_groups_in_every_hierarchy_once(v1: Path) -> None:
    cgroups = Cgroups("x", root=v1)
    assert not cgroups.unified
    _empty_cpusets(v1, "x", ["system", "node-1"])
    cgroups.create(["system", "node-1"])
    for hierarchy in ("cpuset", "cpu,cpuacct", "pids"):
        assert {f"{hierarchy}/uellm-x/system", f"{hierarchy}/uellm-x/node-1"} <= groups(v1)
    assert not any(path.startswith("not-a-hierarchy") for path in groups(v1))


def test_version_1_gives_each_group_cpus_because_it_accepts_no_process_without_them(v1: Path) -> None:
    _empty_cpusets(v1, "x", ["node-1"])
    Cgroups("x", root=v1).create(["node-1"])
    for group in ("uellm-x", "uellm-x/node-1"):
        assert (v1 / "cpuset" / group / "cpuset.cpus").read_text() == "0-3\n"
        assert (v1 / "cpuset" / group / "cpuset.mems").read_text() == "0\n"


def test_version_2_hands_the_kubelets_controllers_down(v2: Path) -> None:
    cgroups = Cgroups("x", root=v2)
    assert cgroups.unified
    cgroups.create(["system", "node-1"])
    for level in (v2, v2 / "uellm-x"):
        assert (level / "cgroup.subtree_control").read_text() == "+cpu +cpuset +io +memory +pids"
    assert (v2 / "uellm-x" / "node-1").is_dir()


def test_members_are_those_of_all_groups_however_deep_and_of_no_other_cluster(v1: Path) -> None:
    for group, pids in {"uellm-x/system": "11\n12\n", "uellm-x/node-1/pod/a": "13\n", "uellm-y/system": "14\n"}.items():
        (v1 / "pids" / group).mkdir(parents=True)
        (v1 / "pids" / group / "cgroup.procs").write_text(pids)
    assert Cgroups("x", root=v1).members() == {11, 12, 13}


def test_removal_takes_every_group_of_the_cluster_and_no_other(v1: Path) -> None:
    for group in ("pids/uellm-x/node-1/kubepods/pod1", "cpuset/uellm-x/system", "pids/uellm-y/system"):
        (v1 / group).mkdir(parents=True)
    Cgroups("x", root=v1).remove()
    assert groups(v1) == {"pids/uellm-y", "pids/uellm-y/system"}


def test_a_process_enters_its_group_before_its_program_starts(v1: Path) -> None:
    cgroups = Cgroups("x", root=v1)
    for hierarchy in ("cpuset", "cpu,cpuacct", "pids"):
        (v1 / hierarchy / "uellm-x" / "system").mkdir(parents=True)
    argv = cgroups.joining(["sh", "-c", 'echo "$$ $1"', "sh", "a b"])
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    pid, rest = done.stdout.strip().split(" ", 1)
    assert rest == "a b"
    for hierarchy in ("cpuset", "cpu,cpuacct", "pids"):
        assert (v1 / hierarchy / "uellm-x" / "system" / "cgroup.procs").read_text().strip() == pid


def test_a_group_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    (tmp_path / "pids" / "cgroup.procs").write_text("")
    (tmp_path / "pids" / "uellm-x").write_text("in the way")
    with pytest.raises(ClusterError, match="privileged"):
        Cgroups("x", root=tmp_path).create(["system"])


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/sys/fs/cgroup/unified/cgroup.procs", os.W_OK),
    reason="needs root and a version 2 hierarchy beside version 1",
)
def test_a_real_version_2_hierarchy_holds_finds_and_gives_back() -> None:
    root = Path("/sys/fs/cgroup/unified")
    control = (root / "cgroup.subtree_control").read_text().split()
    cgroups = Cgroups(f"test-{os.getpid()}", root=root)
    try:
        cgroups.create(["system", "node-1"])
        with subprocess.Popen(cgroups.joining(["cat"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin
            assert process.stdout
            process.stdin.write(b"joined\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"joined\n"
            assert cgroups.members() == {process.pid}
    finally:
        cgroups.remove()
        added = set((root / "cgroup.subtree_control").read_text().split()) - set(control)
        (root / "cgroup.subtree_control").write_text(" ".join(f"-{controller}" for controller in added))
    assert not (root / f"uellm-test-{os.getpid()}").exists()


def _empty_cpusets(root: Path, name: str, parts: list[str]) -> None:
    """The kernel creates empty files in every new group of this controller."""
    for group in (f"uellm-{name}", *(f"uellm-{name}/{part}" for part in parts)):
        (root / "cpuset" / group).mkdir(parents=True, exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            (root / "cpuset" / group / file).write_text("\n")
