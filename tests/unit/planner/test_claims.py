"""What the pods of a plan with allocation DRA claim, and what is planned with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.sizes import GIB
from uellm.errors import PlanError
from uellm.hardware import Attribute, Link, Node, PublishedGpu
from uellm.planner import plan, still_holds
from uellm.planner.handover.claim import claim_needs
from uellm.planner.handover.device_facts import facts_of
from uellm.planner.handover.late_binding import bind
from uellm.planner.handover.plan_document import PlanDocument
from uellm.planner.handover.publish import plan_document
from uellm.planner.handover.selectors import HasAttribute, IsNoneOf


def claiming(build, *nodes, **changes):
    return build.request(*nodes, allocation="DRA", **changes)


def publish(node: Node, *, roots: dict[int, str] | None = None) -> Node:
    """The node as its driver publishes it."""
    devices = tuple(
        replace(
            device,
            published=PublishedGpu(
                device.uuid,
                device.memory_bytes,
                (Attribute("productName", "string", device.product),),
                (roots or {}).get(device.index, ""),
            ),
        )
        for device in node.devices
    )
    return replace(node, devices=devices)


def test_unlike_gpus_are_claimed_by_product_and_least_memory(build):
    request = claiming(build, build.node("a", "T4 L4"), gpus_max=1)
    made = plan(request)
    (stage,) = claim_needs(made, request).requests
    assert (stage.name, stage.count, stage.preferred) == ("stage-0", 1, ())
    product, memory = stage.selectors
    assert product.endswith('.productName == "L4"')
    least = made.stages[0].memory_bytes >> 20
    assert memory == f'device.capacity["gpu.nvidia.com"].memory.compareTo(quantity("{least}Mi")) >= 0'


def test_each_stage_has_a_request_in_pipeline_order(build):
    request = claiming(build, build.node("a", "T4 L4 T4"), overrides=build.overrides(pipeline=2))
    made = plan(request)
    requests = claim_needs(made, request).requests
    assert [each.name for each in requests] == ["stage-0", "stage-1"]
    products = [stage.product for stage in made.stages]
    assert [product in each.selectors[0] for product, each in zip(products, requests, strict=True)] == [True, True]


def test_a_gpu_that_only_its_uuid_tells_apart_is_left_out_by_it(build):
    spoiled = build.gpu("a", 1, "L4", excluded_reason="reserved")
    request = claiming(build, publish(build.node("a", [build.gpu("a", 0, "L4"), spoiled])), gpus_max=1)
    (stage,) = claim_needs(plan(request), request).requests
    assert stage.selectors[-1] == '!(device.attributes["gpu.nvidia.com"].uuid in ["a-gpu-1"])'


def test_gpus_that_only_claims_can_get_are_left_out_for_a_device_plugin_and_found_by_auto(build):
    def claims_only(node: Node) -> Node:
        return replace(node, devices=tuple(replace(device, claims_only=True) for device in publish(node).devices))

    by_claims, by_plugin = claims_only(build.node("a", "L4 L4")), build.node("b", "T4 T4")
    assert list(plan(build.request(by_claims, by_plugin)).nodes) == ["b"]
    with pytest.raises(PlanError):
        plan(build.request(by_claims))
    assert plan(build.request(by_claims, allocation="Auto")).claims


def test_a_gpu_that_no_driver_publishes_is_not_planned_on(build):
    published, other = publish(build.node("a", "T4")), build.node("b", "L4")
    with pytest.raises(PlanError) as refused:
        plan(claiming(build, published, other, gpus_max=1))
    assert refused.value.reason == "NoFit"


def test_slices_are_not_claimed(build):
    slices = build.node("a", [build.gpu("a", 0, "L4", mig=True)])
    with pytest.raises(PlanError):
        plan(claiming(build, slices))


def test_a_name_is_quoted_for_cel():
    attribute = Attribute("productName", "string", 'An "odd" \\ name')
    assert HasAttribute(attribute).cel().endswith('== "An \\"odd\\" \\\\ name"')


def test_a_version_is_compared_as_a_version():
    found = HasAttribute(Attribute("cudaComputeCapability", "version", "8.9.0")).cel()
    assert found.endswith('.cudaComputeCapability.compareTo(semver("8.9.0")) == 0')


def test_many_uuids_stay_within_the_length_of_an_expression():
    uuids = tuple(f"GPU-00000000-0000-0000-0000-{index:012d}" for index in range(100))
    assert len(IsNoneOf(uuids).cel()) < 10 * 1024


PAIRS = {(0, 1), (2, 3)}


def paired(build, name="a", *, roots=None):
    """Four L4, of which two pairs are joined by NVLink."""
    node = build.node(name, "L4 L4 L4 L4")
    links = tuple(
        Link(a.uuid, b.uuid, "NVLink" if (min(i, j), max(i, j)) in PAIRS else "SYS", 2e11 if abs(i - j) == 1 else 1e10)
        for i, a in enumerate(node.devices)
        for j, b in enumerate(node.devices)
        if i != j
    )
    return publish(Node(node.name, node.devices, links), roots=roots)


def two_on_a_layer(build, node):
    request = claiming(build, node, overrides=build.overrides(tensor=2, pipeline=1))
    return claim_needs(plan(request), request)


def test_a_group_that_shares_a_root_complex_is_kept_together_by_it(build):
    needs = two_on_a_layer(build, paired(build, roots={0: "pci0", 1: "pci0", 2: "pci1", 3: "pci1"}))
    assert needs.same_root == ("stage-0",)
    assert needs.requests[0].preferred == ()


def test_well_linked_groups_are_preferred_by_their_uuids_where_nothing_else_tells_them(build):
    needs = two_on_a_layer(build, paired(build))
    assert needs.same_root == ()
    assert needs.requests[0].preferred == (
        'device.attributes["gpu.nvidia.com"].uuid in ["a-gpu-0", "a-gpu-1"]',
        'device.attributes["gpu.nvidia.com"].uuid in ["a-gpu-2", "a-gpu-3"]',
    )


def test_alike_links_need_no_preference(build):
    node = publish(build.all_links(build.node("a", "L4 L4 L4 L4")))
    needs = two_on_a_layer(build, node)
    assert (needs.same_root, needs.requests[0].preferred) == ((), ())


def test_a_kept_plan_holds_while_gpus_of_its_products_are_free(build):
    request = claiming(build, build.node("a", "T4 L4 L4"), gpus_max=1)
    made = plan(request)
    assert still_holds(made, request) is None
    one_left = claiming(build, build.offer(build.node("a", "T4 L4 L4"), taken=[1]), gpus_max=1)
    assert still_holds(made, one_left) is None
    none_left = claiming(build, build.offer(build.node("a", "T4 L4 L4"), taken=[1, 2]), gpus_max=1)
    assert still_holds(made, none_left) is not None


def test_nodes_that_no_request_of_the_claim_admits_are_not_named(build):
    request = claiming(build, build.node("a", "L4"), build.node("b", "A10"), gpus_max=1)
    made = plan(request)
    assert len(made.nodes) == 1


def test_a_plan_without_claims_says_nothing_of_them(build):
    request = build.request(build.node("a", "L4"))
    made = plan(request)
    assert "allocation" not in made.to_dict()
    assert "claimed" not in plan_document(made, request).to_dict()


@pytest.fixture
def two_stages(build):
    node = build.node("a", "T4 L4")
    request = claiming(build, node, gpus_min=2, gpus_max=2)
    made = plan(request)
    document = PlanDocument.from_json(plan_document(made, request).to_json())
    return made, document, facts_of([node])


def test_the_planned_layers_are_bound_in_the_order_of_the_claim(two_stages):
    made, document, facts = two_stages
    bound = bind(document, made.devices, advice=facts, claimed=made.devices)
    assert (bound.order, bound.layers) == (made.devices, made.layers)


def test_without_the_order_of_the_claim_the_solver_finds_it_again(two_stages):
    made, document, facts = two_stages
    bound = bind(document, tuple(reversed(made.devices)), advice=facts)
    assert (bound.order, bound.layers) == (made.devices, made.layers)


def test_devices_that_are_not_what_the_claim_asked_for_are_bound_as_they_are_or_refused(two_stages, build):
    made, document, facts = two_stages
    wrong = tuple(reversed(made.devices))
    assert bind(document, wrong, advice=facts, claimed=wrong).order == made.devices
    small = [build.gpu("b", index, "tiny") for index in (0, 1)]
    with pytest.raises(PlanError) as refused:
        bind(document, [each.uuid for each in small], advice=facts_of([build.node("b", small)]))
    assert refused.value.reason == "NoFit"
    assert small[0].memory_bytes < 3 * GIB


def unlike_node(build):
    """The device plugin can use it only as a whole; the large GPUs alone do better."""
    return build.node("a", "H100 H100 T4 T4")


def test_auto_claims_where_the_device_plugin_has_no_plan(build):
    request = build.request(build.node("a", "T4 L4"), allocation="Auto", gpus_max=1)
    made = plan(request)
    assert made.allocation == "DRA"
    assert "claims its GPUs by DRA" in made.assumptions[0]


def test_auto_claims_where_that_takes_fewer_gpus(build):
    node = unlike_node(build)
    plugin, auto = (plan(build.request(node, allocation=way)) for way in ("DevicePlugin", "Auto"))
    assert plugin.gpus_per_replica > auto.gpus_per_replica
    assert auto.allocation == "DRA"


def test_auto_asks_by_the_resource_where_a_claim_gains_nothing(build):
    request = build.request(build.node("a", "L4 L4"), allocation="Auto")
    made = plan(request)
    assert made == plan(replace(request, allocation="DevicePlugin"))
    assert made.allocation == "DevicePlugin"


def test_auto_says_why_there_is_no_plan_at_all_as_the_device_plugin_does(build):
    with pytest.raises(PlanError) as refused:
        plan(build.request(build.node("a", "tiny"), allocation="Auto"))
    assert refused.value.reason == "NoFit"
