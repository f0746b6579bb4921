from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from uellm.cli.main import main
from uellm_devcluster import cluster, local
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.native import missing_directories
from uellm_devcluster.state import Record, State


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("UELLM_CLUSTER_DIR", str(tmp_path / "clusters"))
    monkeypatch.delenv("UELLM_CLUSTER_NAME", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["up", "--nodes", "0"], "--nodes"),
        (["up", "--nodes", "two"], "--nodes"),
        (["up", "--kwok", "-1"], "--kwok"),
        (["up", "--mount", "/tmp"], "--mount"),
        (["up", "--mount", "/tmp:relative"], "--mount"),
        (["up", "--mount", "/does/not/exist:/x"], "--mount"),
        (["up", "--images", "/does/not/exist"], "--images"),
        (["up", "--binaries", "/does/not/exist"], "--binaries"),
        (["up", "--provider", "cloud"], "--provider"),
        (["sideways"], "ACTION"),
    ],
)
def test_bad_input_names_the_option_and_exits_with_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["cluster", *arguments])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_clusters_kubeconfig_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "kubeconfig"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "uellm cluster up" in output.err


def test_kubeconfig_prints_the_path_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    state = State("demo")
    state.make()
    state.write(Record(local.PROVIDER, {}, phase="running"))
    assert main(["cluster", "kubeconfig", "--name", "demo"]) == 0
    assert capsys.readouterr().out == f"{state.kubeconfig}\n"


def test_a_missing_clusters_status_is_one_json_document_and_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "status", "-o", "json"]) == 1
    status = json.loads(capsys.readouterr().out)
    assert (status["name"], status["running"], status["nodes"]) == ("uellm", False, [])


def test_a_bad_cluster_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "status", "--name", "No/Name"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


class Refusing:
    """A provider whose start fails half way."""

    PROVIDER = local.PROVIDER

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.stopped = False

    def check(self, state: State) -> None: ...

    def start(self, state: State, record: Record, *, images: list[Path], tied: bool) -> None:
        state.log("etcd").write_text("half way\n")
        raise self.error

    def stop(self, state: State, *, keep_logs: bool = False) -> None:
        self.stopped = True
        state.remove(keep_logs=keep_logs)

    def lives(self, state: State) -> bool:
        return True


@pytest.mark.parametrize("error", [ClusterError("no"), KeyboardInterrupt()])
def test_a_failed_start_is_undone_and_keeps_its_logs(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Refusing(error)
    monkeypatch.setattr(cluster, "PROVIDERS", {local.PROVIDER: provider})
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(type(error)):
        cluster.up(provider=local.PROVIDER)
    assert provider.stopped
    assert State().read() is None
    assert State().log("etcd").read_text() == "half way\n"


def test_other_options_than_the_running_ones_are_refused_with_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PROVIDERS", {local.PROVIDER: Refusing(ClusterError("must not be started"))})
    state = State()
    state.make()
    state.write(Record(local.PROVIDER, {"kwok_nodes": 2}, phase="running"))
    with pytest.raises(ClusterError, match=r"kwok_nodes: 2, asked 5.*uellm cluster down"):
        cluster.up(provider=local.PROVIDER, kwok=5)


def test_auto_selects_kind_if_docker_answers_and_native_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(*, programs: set[str], docker: bool, user: int) -> None:
        monkeypatch.setattr("shutil.which", lambda name, **_: f"/bin/{name}" if name in programs else None)
        monkeypatch.setattr(cluster, "_docker_answers", lambda: docker)
        monkeypatch.setattr("os.geteuid", lambda: user)

    machine(programs={"kind", "docker"}, docker=True, user=0)
    assert cluster.choose_provider() == "kind"
    machine(programs={"kind", "docker"}, docker=False, user=0)
    assert cluster.choose_provider() == "native"
    machine(programs=set(), docker=False, user=1000)
    with pytest.raises(ClusterError, match="--control-plane-only"):
        cluster.choose_provider()


def test_directories_to_make_come_parents_first_and_each_once(tmp_path: Path) -> None:
    paths = [str(tmp_path / "a/b/c"), str(tmp_path / "a/b/d"), str(tmp_path)]
    expected = [str(tmp_path / part) for part in ("a", "a/b", "a/b/c", "a/b/d")]
    assert missing_directories(paths) == expected


def test_free_ports_differ() -> None:
    ports: dict[str, Any] = local.free_ports("a", "b", "c")
    assert len(set(ports.values())) == 3


def test_a_port_that_somebody_has_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    free = local.free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(local, "_ports", iter([taken.getsockname()[1], free]))
        assert local.free_port() == free
