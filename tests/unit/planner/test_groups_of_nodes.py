"""Plans over several nodes: which nodes, which stages on which, what still holds them, and what joins."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from uellm.cli.plan_svg import draw
from uellm.cli.plan_table import render
from uellm.errors import PlanError
from uellm.hardware import AUTO, DRA, NetworkLink, Node
from uellm.planner import Plan, outlook, plan, still_holds
from uellm.planner.handover.node_needs import node_needs
from uellm.planner.handover.plan_document import PlanDocument
from uellm.planner.handover.publish import plan_document
from uellm.planner.handover.sidecar_prior import step_time
from uellm.planner.host_needs import host_memory_bytes
from uellm.planner.joining import as_joined, broken, joined
from uellm.planner.nodes.facts import profile_hash
from uellm.planner.nodes.groups import groups_of, room
from uellm.planner.nodes.pools import pools_of
from uellm.planner.refusals.sentences import sentence
from uellm.planner.request import PlanRequest
from uellm.planner.revised import revised


@pytest.fixture
def pair(build):
    """Two nodes of two A10 each, and a model of 51 GiB that needs all four."""
    nodes = [build.all_links(build.node(name, "A10 A10")) for name in ("a", "b")]
    return build.request(*nodes, config={**build.config, "num_hidden_layers": 120}, multi_node=True)


def homes(found: Plan) -> list[set[str]]:
    return [{uuid.split("-gpu-")[0] for uuid in stage.devices} for stage in found.stages]


def test_tensor_parallelism_stays_in_a_node_and_stages_follow_the_order_of_the_nodes(pair) -> None:
    found = plan(pair)
    assert (found.tensor, found.pipeline, found.nodes_per_replica) == (2, 2, 2)
    assert homes(found) == [{"a"}, {"b"}]
    assert found.nodes == ("a", "b")
    assert all(stage.product == "A10" for stage in found.stages)
    assert Plan.from_dict(found.to_dict()).nodes_per_replica == 2


def test_several_stages_on_a_node_are_consecutive(pair) -> None:
    found = plan(replace(pair, overrides=replace(pair.overrides, tensor=1)))
    assert (found.pipeline, found.nodes_per_replica) == (4, 2)
    assert homes(found) == [{"a"}, {"a"}, {"b"}, {"b"}]


def test_overrides_of_the_split_are_kept_over_nodes(pair) -> None:
    found = plan(replace(pair, overrides=replace(pair.overrides, layers=(61, 59))))
    assert (found.layers, found.nodes_per_replica) == ((61, 59), 2)


@pytest.mark.parametrize(
    "products",
    [("A10 A10", "L4 L4"), ("A10 L4", "A10 L4"), ("A10 A10", "A10")],
    ids=["two kinds", "unlike GPUs in each", "one GPU too few"],
)
def test_nodes_form_a_group_only_if_each_has_enough_equal_gpus(build, pair, products: tuple[str, str]) -> None:
    nodes = [build.all_links(build.node(name, each)) for name, each in zip("ab", products, strict=True)]
    unfit = build.request(*nodes, config={**build.config, "num_hidden_layers": 120}, multi_node=True)
    with pytest.raises(PlanError) as refused:
        plan(unfit)
    assert refused.value.reason == "NoFit"


def test_gpus_max_bounds_the_whole_replica(pair) -> None:
    assert plan(replace(pair, gpus_max=4)).gpus_per_replica == 4
    with pytest.raises(PlanError):
        plan(replace(pair, gpus_max=3))


def test_gpus_that_other_services_will_take_count_on_each_node(build, pair) -> None:
    promised = replace(pair, nodes=(pair.nodes[0], replace(pair.nodes[1], promised=1)))
    with pytest.raises(PlanError):
        plan(promised)


def test_claims_cannot_span_nodes_and_the_refusal_says_what_would_do(pair) -> None:
    with pytest.raises(PlanError) as refused:
        plan(replace(pair, allocation=DRA))
    assert "placement.allocation DevicePlugin, as tp2 x pp2 over 2 nodes" in str(refused.value)
    assert "a replica that claims its GPUs by DRA cannot span nodes" in str(refused.value)
    assert plan(replace(pair, allocation=AUTO)).nodes_per_replica == 2


@pytest.mark.parametrize(
    ("free", "gpus", "nodes", "replicas"),
    [((2, 2), 4, 2, 1), ((4, 4), 4, 2, 2), ((4, 2, 2), 4, 2, 2), ((4, 2), 4, 2, 1), ((2, 2, 2), 6, 3, 1)],
)
def test_a_replica_takes_as_many_different_nodes_as_it_spans(build, free, gpus: int, nodes: int, replicas: int) -> None:
    offers = build.request(*(build.node(f"n{index}", "A10 " * count) for index, count in enumerate(free)))
    (group,) = (each for each in groups_of(offers, pools_of(offers)) if len(each.members) == nodes)
    assert room(group, gpus) == replicas


def test_a_plan_over_nodes_holds_while_two_nodes_have_its_gpus(build, pair) -> None:
    found = plan(pair)
    assert still_holds(found, pair) is None
    moved = replace(pair, nodes=(pair.nodes[0], build.offer(build.all_links(build.node("c", "A10 A10")))))
    assert still_holds(found, moved) is None
    taken = replace(pair, nodes=(pair.nodes[0], replace(pair.nodes[1], free=pair.nodes[1].free[:1])))
    refusal = still_holds(found, taken)
    assert refusal is not None
    assert sentence(refusal)
    alone = still_holds(found, replace(pair, nodes=pair.nodes[:1]))
    assert alone is not None
    assert sentence(alone) == "a, b have no room"
    two = still_holds(found, replace(pair, replicas=2))
    assert two is not None
    assert sentence(two) == "a, b have room for 1 of 2 replicas"


def test_what_a_plan_over_nodes_would_do_now_is_predicted_with_the_network(pair) -> None:
    found = plan(pair)
    now = outlook(found, pair)
    assert now is not None
    assert now.gpus_in_all == 4
    again = revised(found, pair, None)
    assert again.predicted.tpot_ms == pytest.approx(found.predicted.tpot_ms)
    assert step_time(found, pair) is not None


def test_the_documents_of_a_pod_speak_of_its_node_alone(pair) -> None:
    found = plan(pair)
    document = plan_document(found, pair)
    assert (document.nodes, document.gpus) == (2, 4)
    assert PlanDocument.from_json(document.to_json()).nodes == 2
    assert "nodes" not in replace(document, nodes=1).to_dict()["plan"]
    needs = node_needs(found, pair, "nvidia.com/gpu")
    assert (needs.gpus, needs.products) == (2, ("A10",))
    whole = replace(found, nodes_per_replica=1)
    assert host_memory_bytes(found, pair, simulated=False) < host_memory_bytes(whole, pair, simulated=False)


def test_pods_ask_for_the_host_memory_of_tables_that_the_engine_keeps_there(pair) -> None:
    found, table = plan(pair), 64 << 30
    tabled = replace(pair, architecture=replace(pair.architecture, host_bytes=table))
    more = host_memory_bytes(found, tabled, simulated=False) - host_memory_bytes(found, pair, simulated=False)
    assert more == table // 2  # on each of two nodes


def test_nodes_of_a_class_may_join_as_a_group(build, pair) -> None:
    offer = replace(build.offer(build.all_links(build.node("class big", "A10 A10"))), node_class="big")
    waiting = replace(pair, nodes=(), would_join=(offer,))
    found = plan(waiting)
    assert (found.nodes_per_replica, found.node_classes, found.nodes) == (2, ("big",), ())
    assert found.assumptions[0].startswith("planned for 2 nodes of class big that have not joined: ")
    assert broken(found, waiting) == ""
    there = joined(found, replace(pair, would_join=(offer,)))
    assert there is not None
    assert (there.nodes, homes(there)) == (("a", "b"), [{"a"}, {"b"}])
    assert there.assumptions[0] == "planned for 2 nodes of class big; a and b hold the plan as it is"
    assert joined(found, replace(pair, nodes=pair.nodes[:1])) is None
    assert "class big #2" in render(*as_joined(found, waiting))


def test_the_table_and_the_drawing_show_both_nodes_and_the_network_between_them(pair) -> None:
    found = plan(pair)
    table = render(found, pair)
    assert "4 = tp2 x pp2 a replica, over 2 nodes" in table
    assert "network    stage 0 to 1, a to b: Network 5 GB/s, 50 µs (assumed)" in table
    told = "\n".join(ElementTree.fromstring(draw(found, pair)).itertext())
    for text in ("node a", "node b", "from stage 0 to stage 1: Network 5 GB/s, 50 µs, assumed"):
        assert text in told


def test_the_figures_of_the_network_can_be_read_in_the_drawing_itself_between_the_frames_of_its_nodes(pair) -> None:
    drawn = ElementTree.fromstring(draw(plan(pair), pair))
    tag = "{http://www.w3.org/2000/svg}"
    (label,) = [each for each in drawn.iter(f"{tag}text") if each.text == "Network 5 GB/s, 50 µs, assumed"]
    tall = [each for each in drawn.iter(f"{tag}rect") if float(each.get("width", "0")) > 900]
    frames = sorted(tall, key=lambda each: float(each.get("y", "0")))[-2:]
    upper, lower = (float(frame.get("y", "0")) for frame in frames)
    assert upper + float(frames[0].get("height", "0")) < float(label.get("y", "0")) < lower


def measured(request: PlanRequest, *links: tuple[str, str, float, float]) -> PlanRequest:
    """The request after a measurement of the network from one node to another: bytes per second, seconds one way."""
    nodes = []
    for offer in request.nodes:
        found = tuple(NetworkLink(b, rate, late) for a, b, rate, late in links if a == offer.node.name)
        nodes.append(replace(offer, node=replace(offer.node, network=found)))
    return replace(request, nodes=tuple(nodes))


def test_a_measured_network_counts_in_place_of_the_assumed_one_and_the_plan_says_so(pair) -> None:
    assumed = plan(pair)
    slow, fast = (plan(measured(pair, ("a", "b", rate, late))) for rate, late in ((2e8, 5e-4), (2.5e10, 1e-5)))
    assert slow.predicted.tpot_ms is not None
    assert fast.predicted.tpot_ms < assumed.predicted.tpot_ms < slow.predicted.tpot_ms
    assert fast.predicted.ttft_ms < assumed.predicted.ttft_ms < slow.predicted.ttft_ms
    assert any(
        each.startswith("the network between nodes is not measured: 5 GB/s and 50 µs") for each in assumed.assumptions
    )
    (sentence,) = (each for each in slow.assumptions if "network" in each)
    assert sentence.startswith(
        "the network between such nodes is measured over TCP: 0.2 GB/s and 500 µs, by one pair of them; RDMA is not "
        "measured; what crosses it in a step of "
    )


def test_the_slowest_measured_pair_of_the_nodes_that_could_be_in_a_group_counts(build, pair) -> None:
    third = build.offer(build.all_links(build.node("c", "A10 A10")))
    unlike = build.offer(build.all_links(build.node("d", "L4 L4")))
    wide = replace(pair, nodes=(*pair.nodes, third, unlike))
    request = measured(
        wide,
        ("a", "b", 9e9, 1e-5),
        ("b", "a", 8e9, 2e-5),
        ("b", "c", 7e9, 1e-5),  # a replica may be on these two as well
        ("c", "d", 1e3, 1.0),  # no group has both
        ("c", "gone", 1e3, 1.0),
    )
    found = plan(request)
    (sentence,) = (each for each in found.assumptions if "network" in each)
    assert "7 GB/s and 20 µs, the slowest of 2 pairs" in sentence
    assert plan(replace(request, nodes=request.nodes[::-1])) == found
    table = render(found, request)
    assert "network    stage 0 to 1, a to b: Network 7 GB/s, 20 µs (the slowest measured)" in table
    assert "Network 7 GB/s, 20 µs, the slowest measured" in draw(found, request)


def test_a_kept_plan_is_predicted_with_the_network_as_it_is_measured_now(pair) -> None:
    found, slow = plan(pair), measured(pair, ("b", "a", 2e8, 5e-4))
    assert still_holds(found, slow) is None
    before, now = outlook(found, pair), outlook(found, slow)
    assert before is not None
    assert now is not None
    assert now.end_to_end_s > before.end_to_end_s
    assert revised(found, slow, None).predicted.tpot_ms == plan(slow).predicted.tpot_ms
    prior, slower = step_time(found, pair), step_time(found, slow)
    assert prior is not None
    assert slower is not None
    assert slower.floor_s + slower.overhead_s > prior.floor_s + prior.overhead_s


def test_what_pods_are_started_with_does_not_depend_on_the_network(pair) -> None:
    found, slow = plan(pair), measured(pair, ("a", "b", 2e8, 5e-4))
    assert plan_document(found, pair) == plan_document(found, slow)
    assert profile_hash(offer.node for offer in pair.nodes) != profile_hash(offer.node for offer in slow.nodes)


def test_a_profile_tells_of_the_network_and_an_older_one_does_not() -> None:
    entries = [
        {"node": name, "bytesPerSecond": 10**9, "roundTripNanoseconds": 60_000, "measuredAt": "2026-01-01T00:00:00Z"}
        for name in ("c", "b")
    ]
    profile = {"metadata": {"name": "a"}, "status": {"devices": [], "network": entries}}
    found = Node.from_profile(profile).network
    assert found == (NetworkLink("b", 1e9, 3e-5), NetworkLink("c", 1e9, 3e-5))
    assert [{**link.to_dict(), "measuredAt": entries[0]["measuredAt"]} for link in found] == entries[::-1]
    assert Node.from_profile({"metadata": {"name": "a"}, "status": {"devices": []}}).network == ()
