"""A cluster with real nodes leaves nothing behind, whatever happens to it."""

from __future__ import annotations

import signal
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def untouched(commands: Any) -> Any:
    """The state of the machine before the test. The test's changes are removed afterwards."""
    commands("down")
    before = commands.world()
    yield before
    commands("down")
    assert commands.world() == before


def test_down_leaves_nothing_and_may_be_repeated(commands: Any, untouched: Any) -> None:
    commands("up", "--kwok", "2")
    assert commands.world() != untouched
    commands("down")
    assert commands.world() == untouched
    assert not commands.state.directory.exists()
    assert "no such cluster" in commands("down").stderr


@pytest.mark.parametrize("moment", ["certificates", "namespaces", "control plane", "nodes"])
def test_a_killed_up_leaves_nothing_after_down(commands: Any, untouched: Any, moment: str) -> None:
    commands.interrupt_up(moment, signal.SIGKILL)
    commands("down")
    assert commands.world() == untouched


def test_up_after_an_interrupted_up_starts_again(commands: Any) -> None:
    commands.interrupt_up("kubelet", signal.SIGKILL)
    said = commands("up", "--nodes", "1").stderr
    assert "removing what it left" in said
    assert [node["name"] for node in commands.status()["nodes"]] == ["node-1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_cleans_up_itself(commands: Any, untouched: Any, number: signal.Signals) -> None:
    assert commands.interrupt_up("control plane", number) == 130
    assert commands.world() == untouched


def test_a_failed_start_reports_the_reason_and_cleans_up(commands: Any, untouched: Any, tmp_path: Any) -> None:
    kubernetes = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
    for program in (*kubernetes, "etcd", "containerd", "containerd-shim-runc-v2", "ctr"):
        (tmp_path / program).write_text("#!/bin/sh\necho no such luck; exit 3\n")
        (tmp_path / program).chmod(0o755)
    said = commands("up", "--binaries", str(tmp_path), expect=1).stderr
    assert "ended during its start" in said
    assert "no such luck" in said
    assert commands.world() == untouched
