from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from uellm.reconcile.pods.engine_readiness import engine_readiness
from uellm.reconcile.pods.pod_failures import (
    FORGOTTEN_AFTER_S,
    MOST_NAMED,
    SHOWN_S,
    NodeState,
    PodFailures,
    Removal,
    failed_pods,
    lost_gpus,
    removals,
    tally,
)
from uellm.reconcile.profiled_node import profiled_node

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)

# As kubelets and controllers of Kubernetes 1.36 write them.
REFUSED = {
    "Evicted": "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 120Mi. Container "
    "engine was using 30Gi, request is 0, has larger consumption of ephemeral-storage.",
    "UnexpectedAdmissionError": "Allocate failed due to requested number of devices unavailable for nvidia.com/gpu. "
    "Requested: 2, Available: 1, which is unexpected",
    "OutOfcpu": "Node didn't have enough resource: cpu, requested: 2000, used: 1900, capacity: 3000",
    "OutOfnvidia.com/gpu": "Node didn't have enough resource: nvidia.com/gpu, requested: 2, used: 1, capacity: 2",
    "NodeAffinity": "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity",
    "Terminated": "Pod was terminated in response to imminent node shutdown.",
    "NodeShutdown": "Pod was rejected as the node is shutting down.",
}


def failed(make, name="a", reason="Evicted", message="low on memory", created="2026-05-01T11:00:00Z"):
    pod = make.pod(name, phase="Failed", reason=reason, message=message)
    pod["metadata"]["creationTimestamp"] = created
    return pod


def misplaced(make, name="a"):
    said = "uellm launcher: NoFit: GPU g0 has 2 GiB free and stage 1 needs 3 GiB\n"
    ended = {"terminated": {"exitCode": 1, "message": said}}
    return make.pod(name, containerStatuses=[{"name": "engine", "state": {"waiting": {}}, "lastState": ended}])


def terminating(make, name="a", since_s=120.0):
    pod = make.pod(name)
    pod["metadata"]["deletionTimestamp"] = (NOW - timedelta(seconds=since_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return pod


def found(*pods, node=NodeState.THERE):
    return failed_pods(pods, {"node-1": node}, NOW)


@pytest.mark.parametrize(("reason", "message"), REFUSED.items())
def test_a_failed_pod_is_reported_with_the_kubelets_message(make, reason, message):
    failures = tally(None, found(failed(make, reason=reason, message=message)), NOW)
    assert failures.message == f"pod a on node node-1: {reason}: {message}"
    state = engine_readiness(make.deployment(), [], 1, failures)
    assert (state.ready, state.reason, state.stalled) == (False, "PodFailed", False)
    assert state.message == f"1 pod has failed for good within the last hour, last {failures.message}"


def test_a_disrupted_pod_without_a_reason_has_that_of_its_disruption(make):
    pod = failed(make, reason=None, message=None)
    pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}]
    assert tally(None, found(pod), NOW).reason == "DeletionByPodGC"


def test_pods_that_run_or_finish_in_time_have_not_failed(make):
    assert found(make.pod(), terminating(make, since_s=120)) == ()


def test_each_pod_is_counted_once_however_often_it_is_seen(make):
    first = tally(None, found(failed(make)), NOW)
    assert tally(first, found(failed(make)), NOW + timedelta(seconds=5)) == first
    written = PodFailures.from_status({"podFailures": first.to_dict()})
    assert written == first  # so a restarted operator does not count it again either
    both = tally(written, found(failed(make), failed(make, "b", "OutOfcpu")), NOW + timedelta(seconds=9))
    assert (both.total, both.reason, both.pods) == (2, "OutOfcpu", ("a", "b"))


def test_more_pods_than_the_status_can_name_are_counted_in_turn(make):
    pods = [failed(make, f"p{number:03}") for number in range(MOST_NAMED + 5)]
    first = tally(None, found(*pods), NOW)
    assert first.total == MOST_NAMED
    rest = [pod for pod in pods if pod["metadata"]["name"] not in first.pods]
    assert tally(first, found(*rest), NOW).total == MOST_NAMED + 5


def test_the_third_within_an_hour_is_stalled_and_comes_before_the_pod_that_is_tried_next(make):
    failures = tally(None, found(failed(make), failed(make, "b"), failed(make, "c")), NOW)
    state = engine_readiness(make.deployment(), [make.unschedulable("d")], 1, failures)
    assert (state.reason, state.stalled) == ("PodFailed", True)
    assert state.message.startswith("3 pods have failed for good")


def test_a_single_failure_does_not_hide_what_the_next_pod_waits_for(make):
    failures = tally(None, found(failed(make)), NOW)
    assert engine_readiness(make.deployment(), [make.unschedulable("b")], 1, failures).reason == "Unschedulable"


def test_a_service_whose_replicas_serve_is_ready_whatever_has_failed_before(make):
    failures = tally(None, found(failed(make), failed(make, "b"), failed(make, "c")), NOW)
    assert engine_readiness(make.deployment(ready=1), [make.pod("d")], 1, failures).ready


def test_failures_are_forgotten_after_an_hour(make):
    first = tally(None, found(failed(make)), NOW)
    later = NOW + timedelta(seconds=FORGOTTEN_AFTER_S)
    assert tally(first, (), later) is None
    assert tally(first, found(failed(make, "b")), later).total == 1


def test_failed_pods_are_removed_but_the_newest_stays_a_while_for_people(make):
    old, new = failed(make, "old"), failed(make, "new", created="2026-05-01T11:30:00Z")
    failures = tally(None, found(old, new), NOW)
    gone, more_in_s = removals(failures, found(old, new), NOW)
    assert gone == (Removal("old", "uid-old", force=False),)
    assert more_in_s == SHOWN_S
    gone, more_in_s = removals(failures, found(new), NOW + timedelta(seconds=SHOWN_S))
    assert gone == (Removal("new", "uid-new", force=False),)
    assert more_in_s is None


def profile(state="Quarantined", reason="GPULost", holder="uid-a"):
    health = {"state": state, "reason": reason} if reason else {"state": state}
    device = {"uuid": "GPU-3", "index": 3, "memoryBytes": 5, "health": health, "allocatedTo": {"podUID": holder}}
    return profiled_node({"metadata": {"name": "node-1"}, "status": {"devices": [device]}})


def cannot_start(make):
    """A pod whose container the runtime refuses to start: it says so in its own words."""
    said = "failed to create containerd task: nvidia-container-cli: device error: GPU-3: unknown device"
    ended = {"terminated": {"reason": "StartError", "exitCode": 128, "message": said}}
    return make.pod("a", containerStatuses=[{"name": "engine", "state": {"waiting": {}}, "lastState": ended}])


@pytest.mark.parametrize("reason", ["GPULost", "GPUMissing", "GPUNeedsReset", "FabricNotReady"])
def test_a_pod_that_cannot_start_on_a_gpu_that_is_lost_is_replaced(make, reason):
    lost = lost_gpus([profile(reason=reason)])
    (failure,) = failed_pods([cannot_start(make)], {}, NOW, lost)
    assert (failure.reason, failure.message) == (
        "DeviceLost",
        f"GPU 3 (GPU-3) cannot be used any more ({reason}), and a container keeps its devices",
    )
    failures = tally(None, [failure], NOW)
    gone, _ = removals(failures, [failure], NOW + timedelta(seconds=10))
    assert gone == (Removal("a", "uid-a", force=False),)


@pytest.mark.parametrize(
    "node", [profile(reason="NVLinkDown"), profile(state="Healthy", reason=""), profile(holder="uid-other")]
)
def test_a_pod_that_cannot_start_for_another_reason_stays(make, node):
    assert failed_pods([cannot_start(make)], {}, NOW, lost_gpus([node])) == ()


def test_a_pod_that_serves_stays_whatever_its_profile_says(make):
    serving = make.pod("a", conditions=[{"type": "Ready", "status": "True"}])
    assert failed_pods([serving], {}, NOW, lost_gpus([profile()])) == ()


def test_a_pod_whose_launcher_misses_an_allocated_gpu_is_replaced(make):
    pod = misplaced(make)
    ended = pod["status"]["containerStatuses"][0]["lastState"]["terminated"]
    ended["message"] = "uellm launcher: DeviceLost: NVIDIA_VISIBLE_DEVICES names GPU-3, which is not there\n"
    assert [each.reason for each in found(pod)] == ["DeviceLost"]


def missed(make, state, ready):
    """A pod whose launcher missed a GPU, as while its node boots, and which then came to this state."""
    said = "uellm launcher: DeviceLost: NVIDIA_VISIBLE_DEVICES names GPU-3, which is not there\n"
    last = {"terminated": {"exitCode": 1, "message": said}}
    statuses = [{"name": "engine", "state": state, "lastState": last}]
    return make.pod("a", conditions=[{"type": "Ready", "status": ready}], containerStatuses=statuses)


RUNNING, WAITING = {"running": {"startedAt": "2026-05-01T11:59:00Z"}}, {"waiting": {"reason": "CrashLoopBackOff"}}


def test_a_pod_that_serves_is_not_removed_for_a_gpu_that_it_missed_before(make):
    assert found(missed(make, RUNNING, "True")) == ()


def test_a_pod_that_starts_again_after_it_missed_a_gpu_is_waited_for_and_counted_once(make):
    failures = tally(None, found(missed(make, WAITING, "False")), NOW)
    later = NOW + timedelta(seconds=60)
    starting = found(missed(make, RUNNING, "False"))
    assert tally(failures, starting, later) == failures
    assert removals(failures, starting, later) == ((), None)
    again = found(missed(make, WAITING, "False"))
    assert tally(failures, again, later) == failures
    assert removals(failures, again, later)[0] == (Removal("a", "uid-a", force=False),)


def test_a_pod_that_runs_on_a_gpu_that_its_profile_calls_lost_is_not_waited_for(make):
    failed_now = failed_pods([missed(make, RUNNING, "False")], {}, NOW, lost_gpus([profile()]))
    gone, _ = removals(tally(None, failed_now, NOW), failed_now, NOW + timedelta(seconds=10))
    assert gone == (Removal("a", "uid-a", force=False),)


def test_a_pod_whose_devices_cannot_hold_the_plan_is_removed_with_backoff(make):
    failures = tally(None, found(misplaced(make)), NOW)
    assert (failures.reason, failures.total) == ("NoFit", 1)
    assert removals(failures, found(misplaced(make)), NOW) == ((), 10.0)
    gone, _ = removals(failures, found(misplaced(make)), NOW + timedelta(seconds=10))
    assert gone == (Removal("a", "uid-a", force=False),)
    waits = []
    for number in range(8):
        failures = tally(failures, found(misplaced(make, f"b{number}")), NOW)
        waits.append(removals(failures, found(misplaced(make, f"b{number}")), NOW)[1])
    assert waits == [20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0, 300.0]


def test_a_pod_stuck_on_a_node_that_is_gone_is_removed_by_force(make):
    pod = terminating(make)
    failures = tally(None, found(pod, node=NodeState.GONE), NOW)
    assert failures.reason == "NodeGone"
    gone, _ = removals(failures, found(pod, node=NodeState.GONE), NOW)
    assert gone == (Removal("a", "uid-a", force=True),)


def test_a_pod_stuck_on_a_silent_node_is_reported_and_kept(make):
    pod = terminating(make)
    failures = tally(None, found(pod, node=NodeState.UNREACHABLE), NOW)
    assert failures.reason == "NodeUnreachable"
    assert "node.kubernetes.io/out-of-service" in failures.message
    assert removals(failures, found(pod, node=NodeState.UNREACHABLE), NOW) == ((), None)


def test_a_pod_within_its_grace_period_is_not_stuck(make):
    assert found(terminating(make, since_s=-30), node=NodeState.GONE) == ()


def test_an_edited_status_is_not_a_failure():
    for entry in (None, [], {"count": "x"}, {"count": 1, "reason": "a", "message": "b", "lastFailedAt": "never"}):
        assert PodFailures.from_status({"podFailures": entry}) is None
