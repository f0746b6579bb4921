"""Which pods of a surge or a stand-in are given up, when, and why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from uellm.kube.kinds import DEPLOYMENT, NODE, POD
from uellm.reconcile.observe import Observed
from uellm.reconcile.surges import Surges

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
QUOTA = 'pods "llama-engine-x" is forbidden: exceeded quota: team-a'
MULTI_ATTACH = 'FailedAttachVolume: Multi-Attach error for volume "pvc-1"'


def after(**times):
    return START + timedelta(**times)


def stamp(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def pod(make):
    def build(name, *, node="node-2", ready=False, deleted=None, created=START, **status):
        conditions = [{"type": "Ready", "status": str(ready)}]
        if node:
            conditions.append({"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(created)})
        found = make.pod(name, node=node, conditions=conditions, **status)
        found["metadata"]["creationTimestamp"] = stamp(created)
        if deleted is not None:
            found["metadata"]["deletionTimestamp"] = stamp(deleted)
        return found

    return build


@pytest.fixture
def seen(make):
    """A service of one replica with these pods, in the middle of a surge, or with a stand-in."""

    def build(*pods, conditions=(), note="", **fields):
        live = make.deployment(2 if note else 1)
        live["spec"]["progressDeadlineSeconds"] = 2400
        live["status"] |= {"replicas": 2, "updatedReplicas": 1, "conditions": list(conditions)}
        if note:
            live["status"]["updatedReplicas"] = 2
            live["metadata"]["annotations"]["uellm.io/stand-in"] = note
        return Observed(make.service(), None, children={DEPLOYMENT: live}, pods=pods, **fields)

    return build


def refused(since):
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": QUOTA}
    return {**condition, "lastTransitionTime": stamp(since)}


def waiting(reason, restarts=0):
    return [{"name": "engine", "restartCount": restarts, "state": {"waiting": {"reason": reason}}}]


def both(observed, now):
    surge = Surges().of(observed, now)
    return surge.stuck, surge.hopeless


def test_a_pod_is_pending_for_too_long_only_without_a_node(pod, seen):
    observed = seen(pod("old", node="node-1", ready=True), pod("loading"), pod("waiting", node=None))
    assert both(observed, after(seconds=59)) == ("", "")
    why = "the additional pod waiting has been Pending for a minute"
    assert both(observed, after(seconds=60)) == (why, why)


def test_a_pod_that_is_never_created_is_given_up_after_a_minute(pod, seen):
    observed = seen(pod("old", node="node-1", ready=True), conditions=[refused(START)])
    assert both(observed, after(seconds=59)) == ("", "")
    why = f"the API server refuses the additional pod: {QUOTA}"
    assert both(observed, after(seconds=60)) == (why, why)


def test_a_volume_that_is_attached_to_the_node_of_the_old_pod_is_not_waited_for(pod, seen):
    observed = seen(pod("old", node="node-1", ready=True), pod("b"), kubelet_warnings={"uid-b": MULTI_ATTACH})
    assert both(observed, after(seconds=59)) == ("", "")
    why = f"the additional pod b cannot start on node node-2: {MULTI_ATTACH}"
    assert both(observed, after(seconds=60)) == (why, why)


@pytest.mark.parametrize(
    ("fields", "status", "why"),
    [
        ({"kubelet_warnings": {"uid-b": "FailedMount: no Secret"}}, {}, "FailedMount: no Secret"),
        ({}, {"containerStatuses": waiting("ImagePullBackOff")}, "ImagePullBackOff of container engine"),
        ({}, {"initContainerStatuses": waiting("CreateContainerConfigError")}, "CreateContainerConfigError"),
        ({}, {"containerStatuses": waiting("CrashLoopBackOff", 3)}, "container engine was restarted 3 times"),
    ],
    ids=["mount", "image", "configuration", "crashes"],
)
def test_a_fault_of_the_change_ends_no_pod_that_serves_but_a_drain_does_not_wait_for_it(pod, seen, fields, status, why):
    """A rollout in place would end the old pod, and the new one would fail all the same."""
    observed = seen(pod("old", node="node-1", ready=True), pod("b", **status), **fields)
    assert both(observed, after(seconds=59)) == ("", "")
    stuck, hopeless = both(observed, after(hours=6))
    assert stuck == ""
    assert why in hopeless


def test_a_stand_in_that_only_takes_long_is_waited_for_until_the_deployment_counts_as_failed(pod, seen):
    pulling = {"uid-b": "image vllm since 2026-05-01T12:00:00Z"}
    warned = {"uid-b": "FailedMount: timed out waiting for the condition"}
    observed = seen(pod("old", node="node-1", ready=True), pod("b"), image_pulls=pulling, kubelet_warnings=warned)
    assert both(observed, after(seconds=2399)) == ("", "")
    assert both(observed, after(seconds=2400)) == ("", "pod b does not serve in time")


def test_pods_that_serve_or_end_are_never_given_up(pod, seen):
    gone = pod("gone", node=None, deleted=after(hours=1))
    observed = seen(pod("old", node="node-1", ready=True), gone, kubelet_warnings={"uid-old": MULTI_ATTACH})
    assert both(observed, after(hours=6)) == ("", "")


def test_a_rollout_waits_for_the_gpus_of_a_pod_that_ends_and_a_minute_for_the_scheduler(pod, seen):
    surges, next_one = Surges(), pod("c", node=None)
    ending = seen(pod("old", node="node-1", ready=True), pod("b", deleted=after(minutes=5)), next_one)
    assert surges.of(ending, after(minutes=4)).stuck == ""
    assert surges.due_in_s(ending, after(minutes=4)) == 120
    alone = seen(pod("old", node="node-1", ready=True), next_one)
    assert surges.of(alone, after(minutes=4, seconds=10)).stuck == ""
    assert surges.due_in_s(alone, after(minutes=4, seconds=10)) == 60
    assert surges.of(alone, after(minutes=5, seconds=9)).stuck == ""
    assert surges.of(alone, after(minutes=5, seconds=10)).stuck == (
        "the additional pod c has been Pending for a minute"
    )
    # A drain does not wait: there are other GPUs than these, or none.
    assert surges.of(ending, after(minutes=4)).hopeless


def test_a_pod_that_no_kubelet_ends_gives_no_gpus_back(pod, seen):
    lost = pod("b", deleted=after(minutes=1))
    observed = seen(pod("old", node="node-1", ready=True), lost, pod("c", node=None))
    surge = Surges().of(observed, after(minutes=3))
    assert (surge.spare, bool(surge.stuck)) == ("", True)


def test_the_spare_pod_is_the_one_that_ends_or_does_not_serve(pod, seen):
    old, loading = pod("old", node="node-1", ready=True), pod("b")
    assert Surges().of(seen(old, loading), START).spare == "b"
    ending = pod("a", node="node-1", ready=True, deleted=after(minutes=1))
    assert Surges().of(seen(ending, pod("b", ready=True)), START).spare == "a"
    # Nothing serves that could be spared a gap.
    assert Surges().of(seen(ending, loading), START).spare == ""
    assert Surges().of(seen(old), START).spare == ""
    assert Surges().of(seen(old, pod("b", node=None)), START).spare == ""
    assert Surges().of(seen(old, pod("b", phase="Failed")), START).spare == ""


@pytest.mark.parametrize("note", ["", "for node-1"], ids=["rollout", "stand-in"])
def test_a_pass_is_due_when_a_surge_may_have_to_be_given_up(pod, seen, note):
    observed = seen(pod("old", node="node-1", ready=True), conditions=[refused(START)], note=note)
    assert Surges().due_in_s(observed, after(seconds=20)) == 40
    assert Surges().due_in_s(observed, after(seconds=60)) is None


def test_a_service_without_a_surge_asks_for_no_further_pass(make, pod):
    live = make.deployment(1, ready=1)
    observed = Observed(make.service(), None, children={DEPLOYMENT: live}, pods=(pod("a"),))
    assert Surges().due_in_s(observed, START) is None


@pytest.mark.parametrize(("managed", "announced"), [({"node-1", "node-2"}, True), ({"node-1"}, False), (set(), False)])
def test_evictions_are_announced_where_karpenter_manages_every_node_of_the_pods(pod, seen, managed, announced):
    observed = seen(pod("a", node="node-1"), pod("b"), pod("c", node=None), karpenter_nodes=frozenset(managed))
    assert Surges().of(observed, START).announced is announced
    assert not Surges().of(seen(karpenter_nodes=frozenset(managed)), START).announced


def test_a_node_that_karpenter_made_is_known_by_its_label(world, make):
    world.service("llama")
    for name, labels in (("node-1", {"karpenter.sh/nodepool": "gpus"}), ("node-2", {"pool": "gpus"})):
        world.put(NODE, {"metadata": {"name": name, "uid": name, "labels": labels}, "spec": {}})
        world.put(POD, make.pod(f"on-{name}", node=name))
    world.put(POD, make.pod("on-a-node-that-is-gone", node="node-3"))
    assert world.observed("llama").karpenter_nodes == {"node-1"}
