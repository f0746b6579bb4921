"""Planning on classes of nodes that may join, and what becomes of the plan when a node joins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.sizes import GIB
from uellm.errors import PlanError
from uellm.planner import Plan, joining, plan, still_holds
from uellm.planner.request import NodeOffer, Workload
from uellm.reconcile.planning.render import render


@pytest.fixture
def class_(build):
    """A class of nodes by its name and products, as it is offered."""

    def make(name: str, products: str, **facts) -> NodeOffer:
        return replace(build.offer(build.node(f"class {name}", products)), node_class=name, **facts)

    return make


def read_back(made: Plan) -> Plan:
    return Plan.from_dict(made.to_dict())


def test_a_cluster_without_a_node_is_planned_on_a_class_and_the_plan_says_so(build, class_):
    made = plan(build.request(would_join=(class_("big", "H100"),)))
    assert (made.gpus_per_replica, made.nodes, made.devices, made.node_classes) == (1, (), (), ("big",))
    assert made.assumptions[0] == (
        "planned for a node of class big that has not joined: no node has a GPUNodeProfile yet: is the profiler "
        "running on the GPU nodes?"
    )
    assert read_back(made).node_classes == ("big",)


def test_nodes_that_are_there_come_first(build, class_):
    made = plan(build.request(build.node("a", "L4"), would_join=(class_("big", "H100 H100"),)))
    assert (made.nodes, made.node_classes) == (("a",), ())


def test_nodes_without_room_are_told_in_the_plan_for_a_class(build, class_):
    full = build.offer(build.node("a", "H100"), taken=[0])
    made = plan(build.request(full, would_join=(class_("big", "H100"),)))
    assert made.node_classes == ("big",)
    assert "none of the 1 GPUs on 1 node is free: 1 in use" in made.assumptions[0]


def test_the_smallest_class_that_holds_the_service_is_chosen_and_the_others_would_do(build, class_):
    classes = (class_("eight", " ".join(["H100"] * 8)), class_("small", "tiny tiny"), class_("one", "H100"))
    made = plan(build.request(would_join=classes))
    assert made.node_classes == ("one", "eight")


def test_as_many_nodes_join_as_the_load_needs(build, class_):
    load = Workload(requests_per_s=40, prompt_tokens_mean=512, output_tokens_mean=256)
    made = plan(build.request(would_join=(class_("one", "H100"),), classes=build.chat, workload=load))
    assert made.recommended_replicas > 1
    assert not [text for text in made.assumptions if "have room for" in text]


def test_a_class_that_misses_the_targets_is_not_among_those_that_would_do(build, class_):
    classes = (class_("slow", "T4 T4"), class_("fast", "H100"))
    made = plan(build.request(would_join=classes, classes=build.chat))
    assert made.node_classes == ("fast",)


def test_why_no_class_holds_it_is_told_with_why_no_node_does(build, class_):
    with pytest.raises(PlanError) as refused:
        plan(build.request(would_join=(class_("small", "tiny"),)))
    assert refused.value.reason == "NoFit"
    assert str(refused.value).startswith(
        "no node has a GPUNodeProfile yet: is the profiler running on the GPU nodes?; "
    )
    assert "class small: needs" in str(refused.value)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ({"host_memory_bytes": GIB}, "of host memory and the node has 1.0 GiB"),
        ({"host_millicores": 500}, "a replica needs 1 CPU cores and the node has 0.5"),
    ],
)
def test_a_class_whose_host_is_too_small_is_refused_in_one_sentence(build, class_, host, message):
    with pytest.raises(PlanError, match=message):
        plan(build.request(would_join=(class_("big", "H100", **host),)))


def test_a_refused_override_is_not_planned_on_a_class(build, class_):
    wrong = build.request(build.node("a", "L4"), overrides=build.overrides(tensor=3))
    with pytest.raises(PlanError) as refused:
        plan(replace(wrong, would_join=(class_("big", "H100"),)))
    assert refused.value.reason == "InvalidOverride"


@pytest.fixture
def waiting(build, class_):
    """A plan for a class, and the request that it answers."""
    request = build.request(would_join=(class_("big", "H100"),))
    return read_back(plan(request)), request


def test_a_plan_holds_as_long_as_its_class_is_there(waiting):
    made, request = waiting
    assert joining.broken(made, request) == ""
    assert joining.broken(made, replace(request, would_join=())) == "class big is gone"


def test_a_class_that_shrank_no_longer_holds_its_plan(waiting, class_):
    made, request = waiting
    shrunk = replace(request, would_join=(class_("big", "tiny"),))
    assert joining.broken(made, shrunk).startswith("class big: no device has room for even one layer: it needs")


def test_a_node_that_joined_takes_the_plan_over_and_changes_nothing_that_pods_are_made_of(build, waiting):
    made, request = waiting
    node = build.offer(build.node("joined", "H100"))
    found = joining.joined(made, replace(request, nodes=(node,)))
    assert (found.nodes, found.node_classes, found.devices) == (("joined",), (), node.free)
    assert replace(found, nodes=(), node_classes=made.node_classes, assumptions=(), stages=()) == replace(
        made, assumptions=(), stages=()
    )
    assert [stage.memory_bytes for stage in found.stages] == [stage.memory_bytes for stage in made.stages]
    assert found.assumptions[0] == "planned for a node of class big; joined holds the plan as it is"
    assert still_holds(found, replace(request, nodes=(node,))) is None


def test_a_node_that_is_too_small_or_taken_takes_no_plan_over(build, waiting):
    made, request = waiting
    for offer in (build.offer(build.node("a", "tiny")), build.offer(build.node("a", "H100"), promised=1)):
        assert joining.joined(made, replace(request, nodes=(offer,))) is None


def test_a_plan_is_rendered_as_if_its_class_had_joined(waiting):
    made, request = waiting
    shown, joined = joining.as_joined(made, request)
    assert (shown.nodes, shown.devices) == (("class big",), ("class big-gpu-0",))
    assert render(made, request).step_seconds is not None
    assert [offer.node.name for offer in joined.nodes] == ["class big"]
    on_node = replace(made, nodes=("a",), node_classes=())
    assert joining.as_joined(on_node, request) == (on_node, request)
