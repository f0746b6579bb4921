from __future__ import annotations

from uellm.hardware import GPU_RESOURCE


def free(snapshot, node="n"):
    return len(snapshot.offer(node, GPU_RESOURCE).free)


def test_devices_of_no_pod_are_free(make):
    snapshot = make.snapshot(make.profile("n", 3, taken={1: "someone"}))
    assert snapshot.offer("n", GPU_RESOURCE).free == ("n-0", "n-2")


def test_a_node_without_a_profile_offers_nothing(make):
    assert make.snapshot().offer("n", GPU_RESOURCE) is None


def test_a_profile_that_cannot_be_read_is_none(make):
    snapshot = make.snapshot(make.profile("n"))
    snapshot.put_profile({"metadata": {"name": "n"}, "status": {"devices": [{"uuid": "without memory"}]}})
    assert snapshot.offer("n", GPU_RESOURCE) is None


def test_excluded_and_quarantined_devices_are_not_offered(make):
    document = make.profile("n", 3)
    document["spec"] = {"excludedDevices": [{"uuid": "n-0", "reason": "fan"}]}
    document["status"]["devices"][1]["health"] = {"state": "Quarantined", "reason": "XID79"}
    assert make.snapshot(document).offer("n", GPU_RESOURCE).free == ("n-2",)


def test_devices_of_another_resource_are_another_offer(make):
    snapshot = make.snapshot(make.profile("n", 2, resourceName="nvidia.com/mig-1g.10gb"))
    assert free(snapshot) == 0
    assert len(snapshot.offer("n", "nvidia.com/mig-1g.10gb").free) == 2


def test_news_of_a_pod_that_change_nothing_of_what_it_holds_leave_its_nodes_offer_as_it_is(make):
    bound = make.pod("p", node="n", text=make.plan(2))
    snapshot = make.snapshot(make.profile("n"), pods=[bound])
    offer = snapshot.offer("n", GPU_RESOURCE)
    snapshot.put_pod(bound | {"status": {"phase": "Running"}})
    assert snapshot.offer("n", GPU_RESOURCE) is offer
    snapshot.put_pod(bound | {"status": {"phase": "Failed"}})
    assert snapshot.offer("n", GPU_RESOURCE).promised == 0


def test_a_bound_pod_is_a_promise_until_the_profile_shows_it(make):
    snapshot = make.snapshot(make.profile("n"), pods=[make.pod("p", node="n", text=make.plan(2))])
    assert (free(snapshot), snapshot.offer("n", GPU_RESOURCE).promised) == (4, 2)
    snapshot.put_profile(make.profile("n", taken={0: "uid-p", 3: "uid-p"}))
    assert (free(snapshot), snapshot.offer("n", GPU_RESOURCE).promised) == (2, 0)


def test_a_pod_without_a_node_is_no_promise_and_becomes_one_when_bound(make):
    waiting = make.pod("p", text=make.plan(2))
    snapshot = make.snapshot(make.profile("n"), pods=[waiting])
    assert snapshot.offer("n", GPU_RESOURCE).promised == 0
    snapshot.put_pod(make.pod("p", node="n", text=make.plan(2)))
    assert snapshot.offer("n", GPU_RESOURCE).promised == 2


def test_a_promise_is_of_its_own_resource_alone(make):
    text = make.plan(2, resourceName="nvidia.com/mig-1g.10gb")
    assert make.snapshot(make.profile("n"), pods=[make.pod(node="n", text=text)]).offer("n", GPU_RESOURCE).promised == 0


def test_a_pod_that_ends_gives_back_its_promise(make):
    pods = [make.pod("p", node="n", text=make.plan(2)), make.pod("q", node="n", text=make.plan(1))]
    snapshot = make.snapshot(make.profile("n"), pods=pods)
    snapshot.put_pod(make.pod("p", node="n", text=make.plan(2), phase="Failed"))
    snapshot.drop_pod("uid-q")
    assert snapshot.offer("n", GPU_RESOURCE).promised == 0


def test_devices_of_a_pod_that_was_seen_going_are_free_before_the_profile_knows(make):
    snapshot = make.snapshot(
        make.profile("n", taken={0: "uid-p", 1: "uid-other"}), pods=[make.pod("p", node="n", text=make.plan(1))]
    )
    assert free(snapshot) == 2
    snapshot.drop_pod("uid-p")
    assert free(snapshot) == 3
    snapshot.put_profile(make.profile("n", taken={0: "uid-p", 1: "uid-other"}))
    assert free(snapshot) == 3


def test_a_deleted_pod_is_forgotten_once_the_profile_no_longer_names_it(make):
    snapshot = make.snapshot(make.profile("n", taken={0: "uid-p"}), pods=[make.pod("p", node="n", text=make.plan(1))])
    snapshot.drop_pod("uid-p")
    snapshot.put_profile(make.profile("n"))
    assert snapshot._gone == {}


def test_a_pod_without_a_plan_changes_nothing(make):
    snapshot = make.snapshot(make.profile("n"), pods=[make.pod(node="n"), make.pod("q", node="n", text="{not json")])
    assert snapshot.offer("n", GPU_RESOURCE).promised == 0


def test_nodes_with_alike_free_devices_have_one_shape_whichever_devices_these_are(make):
    snapshot = make.snapshot(
        make.profile("a", 4, taken={0: "x"}),
        make.profile("b", 3),
        make.profile("c", 2),
        make.profile("d", 3, product="B"),
    )
    shapes = {name: snapshot.offer(name, GPU_RESOURCE).shape for name in "abcd"}
    assert shapes["a"] == shapes["b"]
    assert len(set(shapes.values())) == 3


def test_a_deleted_profile_takes_the_node_out(make):
    snapshot = make.snapshot(make.profile("n"))
    snapshot.drop_profile("n")
    snapshot.drop_profile("n")
    assert snapshot.offer("n", GPU_RESOURCE) is None


def test_a_pod_that_waits_in_a_queue_takes_nothing_and_one_that_is_preempted_keeps_its_gpus_until_it_is_gone(make):
    snapshot = make.snapshot(make.profile("n", 4))
    gated = make.pod("gated", text=make.plan(2))
    gated["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    snapshot.put_pod(gated)
    assert snapshot.offer("n", GPU_RESOURCE).promised == 0
    victim = make.pod("victim", node="n", text=make.plan(2), phase="Running")
    victim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    victim["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]
    snapshot.put_pod(victim)
    assert snapshot.offer("n", GPU_RESOURCE).promised == 2
    snapshot.drop_pod(victim["metadata"]["uid"])
    assert snapshot.offer("n", GPU_RESOURCE).promised == 0
