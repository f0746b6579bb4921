from __future__ import annotations

from dataclasses import replace

from uellm.reconcile.planning.ledger import (
    BoundPod,
    Claim,
    Commitment,
    claim,
    commitment_to,
    hardware_changed,
    hardware_offers,
    offers,
    offers_more,
)
from uellm.reconcile.profiled_node import profiled_node


def offered(nodes, claims=(), own=()):
    return {offer.node.name: (offer.free, offer.promised) for offer in offers(nodes, list(claims), own)}


def on(*nodes, gpus=2, replicas=1, bound_pods=()):
    return Claim(Commitment(gpus, nodes), replicas, tuple(bound_pods))


def test_devices_of_others_are_not_free_and_own_ones_are(make):
    pod = make.pod("mine")
    nodes = [make.profiled_node("a", "uid-mine", "uid-other", None)]
    assert offered(nodes) == {"a": (("a-g2",), 0)}
    assert offered(nodes, own=[pod]) == {"a": (("a-g0", "a-g2"), 0)}


def test_a_plan_without_pods_is_promised_on_its_first_node_with_room(make):
    nodes = [make.profiled_node("a", None), make.profiled_node("b", None, None)]
    assert offered(nodes, [on("a", "b")]) == {"a": (("a-g0",), 0), "b": (("b-g0", "b-g1"), 2)}


def test_every_replica_is_promised(make):
    nodes = [make.profiled_node("a", None, None), make.profiled_node("b", None, None, None)]
    assert [promised for _, promised in offered(nodes, [on("a", "b", replicas=2)]).values()] == [2, 2]


def test_a_replica_that_fits_nowhere_is_promised_nothing(make):
    nodes = [make.profiled_node("a", None)]
    assert offered(nodes, [on("a")]) == {"a": (("a-g0",), 0)}


def test_earlier_plans_come_first(make):
    nodes = [make.profiled_node("a", None, None), make.profiled_node("b", None, None)]
    assert [promised for _, promised in offered(nodes, [on("a"), on("a", "b")]).values()] == [2, 2]


def test_a_pod_that_its_profile_does_not_show_yet_is_promised_its_gpus(make):
    nodes = [make.profiled_node("a", None, None, None)]
    assert offered(nodes, [on("a", bound_pods=[BoundPod("p", "a", 2)])])["a"][1] == 2


def test_a_pod_that_its_profile_shows_is_counted_once(make):
    nodes = [make.profiled_node("a", "p", "p", None)]
    assert offered(nodes, [on("a", bound_pods=[BoundPod("p", "a", 2)])]) == {"a": (("a-g2",), 0)}


def test_others_are_not_promised_what_this_service_holds_itself(make):
    nodes = [make.profiled_node("a", "uid-mine", "uid-mine")]
    assert offered(nodes, [on("a")], own=[make.pod("mine")]) == {"a": (("a-g0", "a-g1"), 0)}


def test_a_pod_of_a_former_plan_elsewhere_does_not_stand_for_a_replica_of_this_one(make):
    nodes = [make.profiled_node("a", "old", None), make.profiled_node("b", None, None)]
    claims = [on("b", bound_pods=[BoundPod("old", "a", 1)])]
    assert [promised for _, promised in offered(nodes, claims).values()] == [0, 2]


def test_finished_pods_and_pods_without_a_node_hold_nothing(make):
    pods = [make.pod("a", phase="Failed"), make.pod("b", node=None), make.pod("c")]
    assert claim(Commitment(2, ("node-1",)), 2, pods).bound_pods == (BoundPod("uid-c", "node-1", 2),)


def test_quarantined_and_excluded_devices_are_not_offered(make):
    profile = make.profile("a", (None, None))
    profile["status"]["devices"][0]["health"] = {"state": "Quarantined"}
    nodes = [profiled_node(profile)]
    assert offered(nodes) == {"a": (("a-g1",), 0)}
    assert hardware_offers(nodes)[0].free == ("a-g1",)


def test_only_more_to_offer_counts_as_growth(make):
    before = offers([make.profiled_node("a", None, "x")], [], [])
    assert not offers_more(before, before)
    assert not offers_more(before, offers([make.profiled_node("a", "y", "x")], [], []))
    assert not offers_more(before, offers([make.profiled_node("a", None, "x")], [on("a", gpus=1)], []))
    assert offers_more(before, offers([make.profiled_node("a", None, None)], [], []))
    assert offers_more(offers([make.profiled_node("a", None, "x")], [on("a", gpus=1)], []), before)


def test_a_node_that_came_went_or_is_worse_is_other_hardware(make):
    worse = make.profile("a", (None, None), health={"state": "Quarantined"})
    before = offers([make.profiled_node("a", None, None)], [], [])
    assert not hardware_changed(before, offers([make.profiled_node("a", "x", None)], [], []))
    assert hardware_changed(before, offers([profiled_node(worse)], [], []))
    assert hardware_changed(before, offers([], [], []))


def test_time_stamps_and_free_memory_are_not_hardware_changes(make):
    one = profiled_node(make.profile("a", (None,), memoryFreeBytes=5, measured={"measuredAt": "2026-01-01T00:00:00Z"}))
    other = profiled_node(
        make.profile("a", (None,), memoryFreeBytes=9, measured={"measuredAt": "2026-02-01T00:00:00Z"})
    )
    assert one == other


def test_a_replica_that_a_scheduling_gate_holds_back_is_promised_nothing_until_the_gate_goes(make):
    nodes = [make.profiled_node("a", None, None, None, None)]
    gated = make.pod("p", node=None)
    gated["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    assert offered(nodes, [claim(Commitment(2, ("a",)), 1, [gated])])["a"][1] == 0
    assert offered(nodes, [claim(Commitment(2, ("a",)), 2, [gated])])["a"][1] == 2
    del gated["spec"]["schedulingGates"]
    assert offered(nodes, [claim(Commitment(2, ("a",)), 1, [gated])])["a"][1] == 2


def test_a_group_that_a_queue_holds_back_is_promised_nothing_and_one_that_is_admitted_its_part_on_each_node(make):
    nodes = [make.profiled_node(name, None, None) for name in ("a", "b")]
    pods = [make.pod(name, node=None) for name in ("leader", "worker")]
    for pod in pods:
        pod["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    group = Commitment(2, ("a", "b"), pods=2)
    assert [offered(nodes, [claim(group, 1, pods)])[name][1] for name in ("a", "b")] == [0, 0]
    for pod in pods:
        del pod["spec"]["schedulingGates"]
    assert [offered(nodes, [claim(group, 1, pods)])[name][1] for name in ("a", "b")] == [2, 2]


def test_a_preempted_pod_has_its_gpus_until_it_is_gone_and_its_replacement_is_promised_none_meanwhile(make):
    nodes = [make.profiled_node("a", "uid-p", "uid-p"), make.profiled_node("b", None, None)]
    victim, replacement = make.pod("p", node="a"), make.unschedulable("q")
    victim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z"
    promise = Commitment(2, ("a", "b"))
    assert offered(nodes, [claim(promise, 1, [victim, replacement])]) == {"a": ((), 0), "b": (("b-g0", "b-g1"), 0)}
    freed = [make.profiled_node("a", "stranger", "stranger"), nodes[1]]
    assert offered(freed, [claim(promise, 1, [replacement])]) == {"a": ((), 0), "b": (("b-g0", "b-g1"), 2)}


def test_a_replica_over_two_nodes_is_promised_its_part_on_each_of_them(make):
    plan = make.plan()
    whole = commitment_to(plan, {})
    first, last = (
        replace(plan.stages[0], memory_bytes=30),
        replace(plan.stages[0], memory_bytes=50),
    )
    group = replace(plan, stages=(first, last), pipeline=2, gpus_per_replica=2 * plan.tensor, nodes_per_replica=2)
    found = commitment_to(group, {})
    assert (whole.pods, found.pods, found.gpus) == (1, 2, plan.tensor)
    assert found.needs == (50,) * plan.tensor
    nodes = [make.profiled_node(name, *[None] * plan.tensor) for name in ("a", "b", "c")]
    promise = claim(found._replace(nodes=("a", "b"), needs=()), 1, [])
    assert [promised for _, promised in offered(nodes, [promise]).values()] == [plan.tensor, plan.tensor, 0]
