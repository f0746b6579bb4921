from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from uellm_devcluster.errors import ClusterError
from uellm_devcluster.state import Record, State, base_directory, clusters


def test_the_name_comes_from_the_caller_then_the_environment_then_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UELLM_CLUSTER_NAME", raising=False)
    assert State().name == "uellm"
    monkeypatch.setenv("UELLM_CLUSTER_NAME", "other")
    assert State().name == "other"
    assert State("third").name == "third"


@pytest.mark.parametrize("name", ["Upper", "a/b", "..", "-a", "a" * 41])
def test_a_name_that_is_not_a_dns_label_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="lower case letters"):
        State(name)


def test_the_directory_is_the_one_named_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UELLM_CLUSTER_DIR", str(tmp_path))
    assert base_directory() == tmp_path
    assert State("demo").kubeconfig == tmp_path / "demo" / "kubeconfig"


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = State("demo", base=tmp_path)
    assert state.read() is None
    record = Record("native", {"nodes": 2, "mounts": [["/a", "/b"]]}, ports={"api": 1234})
    state.make()
    state.write(record)
    assert state.read() == record
    assert [each.name for each in clusters(tmp_path)] == ["demo"]


def test_an_unreadable_record_still_shows_that_a_cluster_exists(tmp_path: Path) -> None:
    state = State("demo", base=tmp_path)
    state.make()
    (state.directory / "cluster.json").write_text('{"half": ')
    record = state.read()
    assert record is not None
    assert record.phase == "starting"


def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    state = State("demo", base=tmp_path)
    state.make()
    assert state.directory.stat().st_mode & 0o077 == 0


def test_removal_leaves_nothing(tmp_path: Path) -> None:
    state = State("demo", base=tmp_path)
    with state.locked():
        state.make()
        state.log("etcd").write_text("gone\n")
        state.remove()
    assert list(tmp_path.iterdir()) == []


def test_removal_after_a_failure_keeps_the_logs_and_nothing_else(tmp_path: Path) -> None:
    state = State("demo", base=tmp_path)
    state.make()
    state.write(Record("native", {}))
    state.log("etcd").write_text("why\n")
    state.remove(keep_logs=True)
    assert [path.name for path in state.directory.rglob("*")] == ["log", "etcd.log"]


def test_empty_logs_are_removed(tmp_path: Path) -> None:
    state = State("demo", base=tmp_path)
    state.make()
    state.remove(keep_logs=True)
    assert not state.directory.exists()


def test_one_command_at_a_time(tmp_path: Path) -> None:
    state = State("demo", base=tmp_path)
    with (
        state.locked(),
        pytest.raises(ClusterError, match="another command is working"),
        State("demo", base=tmp_path).locked(),
    ):
        pytest.fail("two commands hold the same cluster")
    with State("demo", base=tmp_path).locked():
        pass


def test_the_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from uellm_devcluster.state import State\n"
        "with State('demo', base=Path(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ClusterError), State("demo", base=tmp_path).locked():
            pytest.fail("the other process does not hold the lock")
        process.kill()
    with State("demo", base=tmp_path).locked():
        pass
