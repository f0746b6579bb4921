"""The control plane without nodes, for tests and for users without root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from uellm_devcluster import ControlPlane, processes
from uellm_devcluster.api import Api, node_is_ready
from uellm_devcluster.cluster import down
from uellm_devcluster.state import State

pytestmark = pytest.mark.timeout(180)
UP = [sys.executable, "-m", "uellm.cli.main", "cluster", "up", "--control-plane-only"]
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "played"},
    "spec": {"containers": [{"name": "main", "image": "none"}]},
}


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("UELLM_CLUSTER_DIR", str(tmp_path))
    monkeypatch.delenv("UELLM_CLUSTER_NAME", raising=False)
    return tmp_path


def test_two_control_planes_run_side_by_side_and_leave_nothing(base: Path) -> None:
    with ControlPlane(kwok_nodes=2) as first, ControlPlane(controller_manager=False, scheduler=False) as second:
        assert Api(second.kubeconfig).list("/api/v1/nodes") == []
        api = Api(first.kubeconfig)
        assert [node["metadata"]["name"] for node in api.list("/api/v1/nodes")] == ["kwok-0", "kwok-1"]
        assert all(node_is_ready(node) for node in api.list("/api/v1/nodes"))
        api.create("/api/v1/namespaces/default/pods", POD)
        until(lambda: api.list("/api/v1/namespaces/default/pods")[0]["status"]["phase"] == "Running")
        # Requests to the pod reach this machine.
        assert api.list("/api/v1/namespaces/default/pods")[0]["status"]["podIP"].startswith("127.244.")
        directories = [first.kubeconfig.parent, second.kubeconfig.parent]
        assert all(processes.marked(directory) for directory in directories)
    assert not any(processes.marked(directory) for directory in directories)
    assert list(base.iterdir()) == []


def test_one_whose_test_run_is_killed_ends_and_the_next_command_sweeps_its_files(base: Path) -> None:
    script = "import sys; from uellm_devcluster import ControlPlane\nwith ControlPlane(scheduler=False) as plane: "
    script += "print(plane.kubeconfig.parent, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout
        directory = Path(run.stdout.readline().decode().strip())
        assert processes.marked(directory)
        run.kill()
    until(lambda: not processes.marked(directory))
    down()
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_one_in_the_foreground_ends_with_its_command(base: Path, number: signal.Signals) -> None:
    state = State()
    with subprocess.Popen([*UP, "--foreground"], stderr=subprocess.PIPE, text=True) as command:
        assert command.stderr
        assert any("Ctrl-C ends it" in line for line in command.stderr)
        assert processes.marked(state.directory)
        command.send_signal(number)
        assert command.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    until(lambda: not processes.marked(state.directory))
    assert down() == (number == signal.SIGKILL)
    assert list(base.iterdir()) == []


def test_up_starts_what_ended_on_the_same_port_with_the_same_objects(base: Path) -> None:
    subprocess.run(UP, check=True, capture_output=True)
    state = State()
    Api(state.kubeconfig).create("/api/v1/namespaces", {"metadata": {"name": "kept"}})
    for component in ("kube-apiserver", "etcd"):
        os.kill(processes.pid_of(state, component) or 0, signal.SIGKILL)
    status = subprocess.run([*UP[:-2], "status", "-o", "json"], check=False, capture_output=True, text=True)
    assert status.returncode == 1
    assert not json.loads(status.stdout)["running"]
    subprocess.run(UP, check=True, capture_output=True)
    names = [namespace["metadata"]["name"] for namespace in Api(state.kubeconfig).list("/api/v1/namespaces")]
    assert "kept" in names
    assert down()


def until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
