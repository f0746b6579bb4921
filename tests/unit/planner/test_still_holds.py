from __future__ import annotations

from dataclasses import replace

import pytest

from uellm.planner import Plan, plan, still_holds
from uellm.planner.refusals.kinds import NodesTaken, OnNode, OtherLayers, TooFewGpus, TooFewReplicas
from uellm.planner.refusals.sentences import sentence
from uellm.planner.request import Overrides


@pytest.fixture
def request_(build):
    return build.request(
        build.node("a", "T4 L4 T4"),
        build.node("b", "L4 L4"),
        overrides=Overrides(pipeline=2),
    )


@pytest.fixture
def incumbent(request_) -> Plan:
    """The current plan, as read from the status."""
    return Plan.from_dict(plan(request_).to_dict())


def test_a_plan_holds_on_what_it_was_made_for(incumbent, request_) -> None:
    assert still_holds(incumbent, request_) is None


def test_a_plan_holds_as_long_as_one_of_its_nodes_does(incumbent, request_) -> None:
    for offer in request_.nodes:
        assert still_holds(incumbent, replace(request_, nodes=(offer,))) is None


def test_a_plan_holds_however_the_speeds_change(incumbent, request_) -> None:
    slow = [
        replace(
            offer,
            node=replace(offer.node, devices=tuple(replace(d, memory_bytes_per_s=1e9) for d in offer.node.devices)),
        )
        for offer in request_.nodes
    ]
    assert still_holds(incumbent, replace(request_, nodes=tuple(slow))) is None


def test_a_plan_without_free_devices_does_not_hold(incumbent, request_) -> None:
    taken = tuple(replace(offer, free=offer.free[:1]) for offer in request_.nodes)
    assert still_holds(incumbent, replace(request_, nodes=taken)) == OnNode("a", TooFewGpus(2, 1))


def test_a_plan_whose_nodes_are_gone_does_not_hold(incumbent, request_) -> None:
    refusal = still_holds(incumbent, replace(request_, nodes=()))
    assert refusal == NodesTaken(incumbent.nodes, free=False)
    assert sentence(refusal).startswith("no GPU of a")


def test_a_plan_holds_on_a_node_that_joined_after_it_was_made(incumbent, request_, build) -> None:
    assert still_holds(incumbent, replace(request_, nodes=(build.offer(build.node("z", "H100 H100")),))) is None


def test_a_quarantined_device_leaves_the_plan_to_the_others(incumbent, request_) -> None:
    offer = request_.nodes[0]
    devices = tuple(replace(d, health_state="Quarantined") if d.index == 0 else d for d in offer.node.devices)
    assert (
        still_holds(incumbent, replace(request_, nodes=(replace(offer, node=replace(offer.node, devices=devices)),)))
        is None
    )


def test_a_plan_for_another_number_of_layers_does_not_hold(incumbent, request_) -> None:
    other = replace(request_, architecture=replace(request_.architecture, layers=28))
    assert still_holds(incumbent, other) == OtherLayers(planned=32, model=28)


def test_replicas_without_room_are_reported(incumbent, request_) -> None:
    assert still_holds(incumbent, replace(request_, replicas=2)) is None
    refusal = still_holds(incumbent, replace(request_, replicas=3))
    assert refusal == TooFewReplicas(incumbent.nodes, room=2, wanted=3)
    assert sentence(refusal).endswith("have room for 2 of 3 replicas")
