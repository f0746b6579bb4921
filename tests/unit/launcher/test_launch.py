"""The launcher as a process: it reads a plan, writes a report, and is replaced by the engine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

import pytest

from helpers.launch import plan_document
from uellm.documents import UnreadableDocument
from uellm.errors import PlanError
from uellm.launcher import __main__ as launcher
from uellm.launcher import report
from uellm.launcher.bind import check
from uellm.placement_report import BoundDevice, LaunchFailure, PlacementReport
from uellm.planner.handover.late_binding import Binding

FAILURE = PlacementReport("pod", "node-1", "hash", error=LaunchFailure("NoDevices", "none"))
STARTED = PlacementReport(
    pod="pod",
    node="node-1",
    plan_hash="hash",
    source="nvidia-smi",
    platform="cuda",
    devices=(BoundDevice("GPU-a", "NVIDIA L4", 24 << 30),),
    layers=(8,),
    tensor=1,
    pipeline=1,
    planned=("GPU-a",),
    env={"CUDA_VISIBLE_DEVICES": "GPU-a"},
    argv=("python3", "-m", "vllm"),
)


class Executed(BaseException):
    """Stands for the launcher's end, because a successful execve never returns."""


GPUS = {"GPU-a": ("NVIDIA L4", 24 << 30), "GPU-b": ("NVIDIA T4", 16 << 30), "GPU-c": ("NVIDIA T4", 16 << 30)}


def facts(*uuids: str, **fields) -> str:
    """devices.json, or what a simulated node's device plugin hands over."""
    devices = [
        {"uuid": uuid, "index": index, "product": GPUS[uuid][0], "memoryBytes": GPUS[uuid][1]}
        for index, uuid in enumerate(uuids or GPUS)
    ]
    return json.dumps({"version": 1, "devices": devices, "links": [], **fields})


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the launcher in this process; returns (exit status, the executed command, the report, the plan's hash)."""
    executed: list[tuple] = []

    def execute(*call) -> None:
        executed.append(call)
        raise Executed

    monkeypatch.setattr(os, "execve", execute)
    monkeypatch.setattr(report, "TERMINATION_LOG", tmp_path / "absent")
    for name in ("CUDA_VISIBLE_DEVICES", "VLLM_PP_LAYER_PARTITION", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("POD_NAME", "llama-engine-x1")
    monkeypatch.setenv("NODE_NAME", "node-1")

    def run(content: str | dict, visible: str = "GPU-b,GPU-a", *, advice: str = "", handed_over: str = ""):
        monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", visible)
        monkeypatch.setenv("UELLM_SIMULATED_DEVICES", handed_over)
        devices = tmp_path / "devices.json"
        if advice:
            devices.write_text(advice)
        plan = tmp_path / "plan.json"
        plan.write_text(content if isinstance(content, str) else json.dumps(content))
        placement = tmp_path / "run" / "placement.json"
        status = None
        with contextlib.suppress(Executed):
            files = ["--plan", str(plan), "--devices", str(devices), "--placement", str(placement)]
            status = launcher.main([*files, "--listen", "127.0.0.1:8001"])
        written = json.loads(placement.read_text()) if placement.exists() else None
        return status, executed, written, hashlib.sha256(plan.read_bytes()).hexdigest()

    return run


def test_the_engine_takes_the_launchers_place_and_the_report_says_on_what(launch):
    _, executed, written, plan_hash = launch(plan_document(), advice=facts(planned=["GPU-a", "GPU-b"]))
    [(program, argv, environment)] = executed
    assert program == argv[0]
    assert argv[1:5] == ("-m", "vllm.entrypoints.cli.main", "serve", "/models/tiny")
    assert environment["VLLM_PP_LAYER_PARTITION"] == ",".join(str(count) for count in written["layers"])
    assert written["argv"] == list(argv)
    assert written["planHash"] == plan_hash
    assert (written["pod"], written["node"]) == ("llama-engine-x1", "node-1")
    assert (written["source"], written["platform"]) == ("NVIDIA_VISIBLE_DEVICES", "cpu")
    assert written["planned"] == ["GPU-a", "GPU-b"]
    assert sum(written["layers"]) == 8
    assert sorted(device["uuid"] for device in written["devices"]) == ["GPU-a", "GPU-b"]
    assert {device["memoryBytes"] for device in written["devices"]} == {24 << 30, 16 << 30}
    assert all(environment[name] == value for name, value in written["env"].items())


def test_devices_other_than_planned_are_bound_and_reported(launch):
    _, executed, written, _ = launch(plan_document(), "GPU-c,GPU-a", advice=facts(planned=["GPU-a", "GPU-b"]))
    assert executed
    assert sorted(device["uuid"] for device in written["devices"]) == ["GPU-a", "GPU-c"]
    assert written["planned"] == ["GPU-a", "GPU-b"]


def test_devices_of_a_node_that_was_unknown_to_the_plan_are_bound_by_what_their_device_plugin_says(launch):
    _, executed, written, _ = launch(plan_document(), handed_over=facts("GPU-a", "GPU-b"))
    assert executed
    assert {device["uuid"]: device["memoryBytes"] for device in written["devices"]} == {
        "GPU-a": 24 << 30,
        "GPU-b": 16 << 30,
    }
    assert written["planned"] == []


def test_an_engine_starts_without_facts_that_it_cannot_read(launch, capfd):
    _, executed, _, _ = launch(plan_document(), advice='{"version": 2}', handed_over=facts("GPU-a", "GPU-b"))
    assert executed
    assert "going on without" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "visible", "reason", "sentence"),
    [
        (plan_document(), "GPU-a,GPU-new", "UnknownDevice", "device GPU-new is unknown"),
        (plan_document(), "GPU-a", "WrongDeviceCount", "has 1 GPU and the plan is for 2"),
        (plan_document(), "GPU-a,GPU-b,GPU-c", "WrongDeviceCount", "has 3 GPUs"),
        (plan_document(), "void", "NoDevices", "is `void`"),
        (
            plan_document(version=2),
            "GPU-a,GPU-b",
            "BadPlan",
            "plan.json cannot be read: it has version 2",
        ),
        ("[]", "GPU-a,GPU-b", "BadPlan", "not a JSON object"),
        ("{", "GPU-a,GPU-b", "BadPlan", "not JSON"),
        (plan_document(plan={}), "GPU-a,GPU-b", "BadPlan", "it has no field 'gpusPerReplica'"),
    ],
)
def test_a_launch_that_cannot_be_done_says_why_in_the_report_and_on_stderr(
    launch, capfd, content, visible, reason, sentence
):
    status, executed, written, plan_hash = launch(content, visible, handed_over=facts())
    assert status == 1
    assert executed == []
    assert written["error"]["reason"] == reason
    assert sentence in written["error"]["message"]
    assert written["planHash"] == plan_hash
    [line] = capfd.readouterr().err.splitlines()
    assert line == f"uellm launcher: {reason}: {written['error']['message']}"


def test_a_missing_plan_is_reported(tmp_path, capfd):
    placement = tmp_path / "placement.json"
    assert launcher.main(["--plan", str(tmp_path / "none.json"), "--placement", str(placement)]) == 1
    assert "No such file" in capfd.readouterr().err
    assert json.loads(placement.read_text())["error"]["reason"] == "BadPlan"


def test_an_engine_that_cannot_be_executed_is_a_failure_too(launch, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "execve", refuse)
    status, _, written, _ = launch(plan_document(), handed_over=facts())
    assert (status, written["error"]["reason"]) == (1, "LaunchFailed")


@pytest.mark.parametrize(
    ("binding", "sentence"),
    [
        (Binding(("GPU-a", "GPU-a"), (5, 3), 1, 2), "it uses GPU-a, GPU-a"),
        (Binding(("GPU-a", "GPU-b"), (8,), 1, 1), "tensor 1 x pipeline 1 is not 2 devices"),
        (Binding(("GPU-a", "GPU-b"), (8,), 1, 2), "1 parts for 2 stages"),
        (Binding(("GPU-a", "GPU-b"), (8, 0), 1, 2), r"parts \[8, 0\] are not 8 layers"),
        (Binding(("GPU-a", "GPU-b"), (9, -1), 1, 2), "at least one a stage"),
        (Binding(("GPU-a", "GPU-b"), (5, 4), 1, 2), r"parts \[5, 4\] are not 8 layers"),
    ],
)
def test_a_partition_that_vllm_would_misread_is_refused(binding, sentence):
    with pytest.raises(PlanError, match=sentence) as caught:
        check(binding, ("GPU-b", "GPU-a"), layers=8)
    assert caught.value.reason == "BadPartition"


def test_the_kubelets_termination_log_gets_the_failure(tmp_path, capfd):
    log = tmp_path / "termination-log"
    log.write_text("")
    report.fail(tmp_path / "placement.json", FAILURE, termination_log=log)
    assert log.read_text() == "uellm launcher: NoDevices: none\n" == capfd.readouterr().err


def test_a_report_that_cannot_be_written_does_not_hide_the_failure(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    report.fail(tmp_path / "file" / "placement.json", FAILURE, termination_log=tmp_path / "absent")
    assert "NoDevices: none" in capfd.readouterr().err


def test_the_report_is_replaced_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "placement.json"
    report.write(path, FAILURE)
    report.write(path, STARTED)
    assert PlacementReport.from_dict(json.loads(path.read_text())) == STARTED
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["placement.json"]


@pytest.mark.parametrize("written", [FAILURE, STARTED])
def test_a_report_is_read_as_it_was_written_whatever_a_newer_launcher_adds(written):
    document = json.loads(json.dumps(written.to_dict() | {"added": "later"}))
    assert PlacementReport.from_dict(document) == written
    del document["version"]
    assert PlacementReport.from_dict(document) == written


def test_a_report_of_another_version_is_refused_in_one_line():
    with pytest.raises(UnreadableDocument) as raised:
        PlacementReport.from_dict(STARTED.to_dict() | {"version": 2})
    assert str(raised.value) == (
        "the placement report cannot be read: it has version 2, and this release reads version 1"
    )


@pytest.mark.parametrize("listen", ["8001", "127.0.0.1", ":8001", "h:0", "h:99999"])
def test_a_bad_listen_address_is_bad_input(listen, capfd):
    with pytest.raises(SystemExit) as ended:
        launcher.main(["--listen", listen])
    assert ended.value.code == 2
    assert "is not HOST:PORT" in capfd.readouterr().err
