"""What a leader reports, told pod by pod."""

from __future__ import annotations

from dataclasses import replace

import pytest

from uellm.reconcile.pods.placements import ReportedPlacement, placements, read_report, verified
from uellm.reconcile.pods.pod_failures import PodFate, failed_pods
from uellm.reconcile.times import moment

NOW = moment("2026-01-01T00:10:00Z")
LABELS = "leaderworkerset.sigs.k8s.io"


@pytest.fixture
def pod(make):
    def build(group, index, **status):
        name = f"llama-engine-{group}" + (f"-{index}" if index else "")
        made = make.pod(name, node=f"node-{group}-{index}", **status)
        made["metadata"]["labels"] |= {
            f"{LABELS}/name": "llama-engine",
            f"{LABELS}/group-index": str(group),
            f"{LABELS}/worker-index": str(index),
        }
        return made

    return build


@pytest.fixture
def plan(make):
    """Two stages on two nodes."""
    return replace(make.plan(), nodes_per_replica=2)


def report(plan, *uuids, layers=None):
    return ReportedPlacement("0", uuids, layers or plan.layers, plan.tensor, plan.pipeline)


def test_each_pod_has_its_part_of_the_leaders_report(pod, plan):
    pods = [pod(group, index) for group in (0, 1) for index in (0, 1)]
    other = report(plan, "x", "y")
    told = placements(plan, pods, {"uid-llama-engine-0": report(plan, *plan.devices), "uid-llama-engine-1": other}, [])
    assert [each.actual for each in told] == [plan.devices[:1], plan.devices[1:], ("x",), ("y",)]
    assert [each.planned for each in told] == [plan.devices[:1], plan.devices[1:], (), ()]
    assert [each.layers for each in told] == [plan.layers[:1], plan.layers[1:]] * 2
    assert verified(told).reason == "AsPlanned"


def test_a_group_without_a_report_is_unknown_and_its_leaders_error_is_told_once(pod, plan):
    pods = [pod(0, 0), pod(0, 1)]
    assert [each.matches for each in placements(plan, pods, {}, [])] == ["Unknown", "Unknown"]
    failed = ReportedPlacement("0", error=("GroupDiffers", "pod b has vLLM 2"))
    told = placements(plan, pods, {"uid-llama-engine-0": failed}, [])
    assert [each.error for each in told] == [("GroupDiffers", "pod b has vLLM 2"), None]
    assert verified(told)[1:3] == ("False", "GroupDiffers")


def test_a_report_of_many_nodes_is_read_whole():
    devices = [{"uuid": f"GPU-{index}"} for index in range(128)]
    read = read_report("0", {"version": 1, "devices": devices, "layers": [1] * 16, "tensor": 8, "pipeline": 16})
    assert len(read.uuids) == 128


@pytest.mark.parametrize("reason", ["GroupDiffers", "GroupIncomplete"])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_group_that_did_not_come_about_is_counted_also_while_it_is_made_anew(pod, reason, deleted):
    ended = {"terminated": {"exitCode": 1, "message": f"uellm launcher: {reason}: because\n"}}
    failing = pod(0, 0, containerStatuses=[{"name": "engine", "restartCount": 1, "lastState": ended}])
    if deleted:
        failing["metadata"]["deletionTimestamp"] = "2026-01-01T00:11:00Z"
    (failure,) = failed_pods([failing], {}, NOW)
    assert (failure.fate, failure.reason, failure.message) == (PodFate.MISPLACED, reason, "because")


@pytest.mark.parametrize(
    ("message", "counted"),
    [
        ("uellm launcher: EngineFailed: it was ended by SIGKILL\n", ["it was ended by SIGKILL"]),
        ("uellm launcher: GroupBroken: pod a ended\n", []),
        ("", []),
    ],
)
def test_of_a_group_that_is_deleted_the_pod_that_failed_is_counted(pod, message, counted):
    ended = {"terminated": {"exitCode": 137, "message": message}}
    worker = pod(0, 1, phase="Failed", containerStatuses=[{"name": "engine", "restartCount": 0, "state": ended}])
    worker["metadata"]["deletionTimestamp"] = "2026-01-01T00:11:00Z"
    assert [each.message for each in failed_pods([worker], {}, NOW)] == counted
