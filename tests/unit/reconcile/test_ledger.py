from __future__ import annotations

from uellm.reconcile.fleet import machine
from uellm.reconcile.planning.ledger import Claim, Commitment, Holding, claim, generous, grew, hardware_changed, offers


def offered(fleet, claims=(), own=()):
    return {offer.node.name: (offer.free, offer.promised) for offer in offers(fleet, list(claims), own)}


def on(*nodes, gpus=2, replicas=1, holdings=()):
    return Claim(Commitment(gpus, nodes), replicas, tuple(holdings))


def test_devices_of_others_are_not_free_and_own_ones_are(make):
    pod = make.pod("mine")
    fleet = [make.machine("a", "uid-mine", "uid-other", None)]
    assert offered(fleet) == {"a": (("a-g2",), 0)}
    assert offered(fleet, own=[pod]) == {"a": (("a-g0", "a-g2"), 0)}


def test_a_plan_without_pods_is_promised_on_its_first_node_with_room(make):
    fleet = [make.machine("a", None), make.machine("b", None, None)]
    assert offered(fleet, [on("a", "b")]) == {"a": (("a-g0",), 0), "b": (("b-g0", "b-g1"), 2)}


def test_every_replica_is_promised(make):
    fleet = [make.machine("a", None, None), make.machine("b", None, None, None)]
    assert [promised for _, promised in offered(fleet, [on("a", "b", replicas=2)]).values()] == [2, 2]


def test_a_replica_that_fits_nowhere_is_promised_nothing(make):
    fleet = [make.machine("a", None)]
    assert offered(fleet, [on("a")]) == {"a": (("a-g0",), 0)}


def test_earlier_plans_come_first(make):
    fleet = [make.machine("a", None, None), make.machine("b", None, None)]
    assert [promised for _, promised in offered(fleet, [on("a"), on("a", "b")]).values()] == [2, 2]


def test_a_pod_that_its_profile_does_not_show_yet_is_promised_its_gpus(make):
    fleet = [make.machine("a", None, None, None)]
    assert offered(fleet, [on("a", holdings=[Holding("p", "a", 2)])])["a"][1] == 2


def test_a_pod_that_its_profile_shows_is_counted_once(make):
    fleet = [make.machine("a", "p", "p", None)]
    assert offered(fleet, [on("a", holdings=[Holding("p", "a", 2)])]) == {"a": (("a-g2",), 0)}


def test_others_are_not_promised_what_this_service_holds_itself(make):
    fleet = [make.machine("a", "uid-mine", "uid-mine")]
    assert offered(fleet, [on("a")], own=[make.pod("mine")]) == {"a": (("a-g0", "a-g1"), 0)}


def test_a_pod_of_a_former_plan_elsewhere_does_not_stand_for_a_replica_of_this_one(make):
    fleet = [make.machine("a", "old", None), make.machine("b", None, None)]
    claims = [on("b", holdings=[Holding("old", "a", 1)])]
    assert [promised for _, promised in offered(fleet, claims).values()] == [0, 2]


def test_finished_pods_and_pods_without_a_node_hold_nothing(make):
    pods = [make.pod("a", phase="Failed"), make.pod("b", node=None), make.pod("c")]
    assert claim(Commitment(2, ("node-1",)), 2, pods).holdings == (Holding("uid-c", "node-1", 2),)


def test_quarantined_and_excluded_devices_are_offered_to_nobody(make):
    profile = make.profile("a", (None, None))
    profile["status"]["devices"][0]["health"] = {"state": "Quarantined"}
    fleet = [machine(profile)]
    assert offered(fleet) == {"a": (("a-g1",), 0)}
    assert generous(fleet)[0].free == ("a-g1",)


def test_only_more_to_offer_counts_as_growth(make):
    before = offers([make.machine("a", None, "x")], [], [])
    assert not grew(before, before)
    assert not grew(before, offers([make.machine("a", "y", "x")], [], []))
    assert not grew(before, offers([make.machine("a", None, "x")], [on("a", gpus=1)], []))
    assert grew(before, offers([make.machine("a", None, None)], [], []))
    assert grew(offers([make.machine("a", None, "x")], [on("a", gpus=1)], []), before)


def test_a_node_that_came_went_or_is_worse_is_other_hardware(make):
    worse = make.profile("a", (None, None), health={"state": "Quarantined"})
    before = offers([make.machine("a", None, None)], [], [])
    assert not hardware_changed(before, offers([make.machine("a", "x", None)], [], []))
    assert hardware_changed(before, offers([machine(worse)], [], []))
    assert hardware_changed(before, offers([], [], []))


def test_time_stamps_and_free_memory_are_no_hardware(make):
    one = machine(make.profile("a", (None,), memoryFreeBytes=5, measured={"measuredAt": "2026-01-01T00:00:00Z"}))
    other = machine(make.profile("a", (None,), memoryFreeBytes=9, measured={"measuredAt": "2026-02-01T00:00:00Z"}))
    assert one == other
