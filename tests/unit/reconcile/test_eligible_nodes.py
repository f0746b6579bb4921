"""Nodes that a service's pods may not use are excluded from its plan and reported."""

from __future__ import annotations

import pytest

from uellm.api import parse_service
from uellm.planner.request import LeftOut, NodeOffer
from uellm.reconcile.planning.eligible_nodes import closed, excluded, reachable, selectable, summarised, verdicts
from uellm.reconcile.profiled_node import profiled_node

LABELLED = {"uellm.io/gpu.count": "1", "uellm.io/mig-1g.10gb.count": "1"}


def node(name="node-1", *, labels=None, **spec):
    return {"metadata": {"name": name, "labels": LABELLED | (labels or {})}, "spec": spec}


def ineligible(node, facts, template):
    return excluded(node, facts, template) or closed(node, facts, template)


def facts(make, name="node-1", **device):
    return profiled_node(make.profile(name, (None,), **device)).facts


def affinity(*terms):
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    return {"spec": {"affinity": {"nodeAffinity": required}}}


def expression(key, operator, *values):
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


def test_a_plain_node_is_eligible(make):
    assert ineligible(node(), facts(make), None) == ""
    assert ineligible(node(), facts(make), {"metadata": {"labels": {"a": "b"}}}) == ""


def test_a_cordoned_node_is_not_eligible(make):
    assert ineligible(node(unschedulable=True), facts(make), None) == "cordoned"


def test_a_node_selector_narrows_the_nodes(make):
    template = {"spec": {"nodeSelector": {"gpu": "h100", "zone": "a"}}}
    assert ineligible(node(labels={"gpu": "h100", "zone": "a"}), facts(make), template) == ""
    assert ineligible(node(labels={"gpu": "h100"}), facts(make), template).endswith("nodeSelector wants zone=a")
    assert "labels are not known" in ineligible(None, facts(make), template)
    assert ineligible(None, facts(make), None) == ""


@pytest.mark.parametrize(
    ("term", "does"),
    [
        (expression("gpu", "In", "h100", "h200"), True),
        (expression("gpu", "In", "l4"), False),
        (expression("gpu", "NotIn", "l4"), True),
        (expression("other", "NotIn", "x"), True),
        (expression("gpu", "Exists"), True),
        (expression("gpu", "DoesNotExist"), False),
        (expression("count", "Gt", "4"), True),
        (expression("count", "Lt", "4"), False),
        (expression("gpu", "Gt", "4"), False),
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}, True),
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-2"]}]}, False),
        ({}, False),
    ],
)
def test_required_affinity_is_read_as_the_scheduler_reads_it(make, term, does):
    said = ineligible(node(labels={"gpu": "h100", "count": "8"}), facts(make), affinity(term))
    assert (said == "") == does


def test_one_term_of_several_is_enough(make):
    template = affinity(expression("gpu", "In", "l4"), expression("gpu", "Exists"))
    assert ineligible(node(labels={"gpu": "h100"}), facts(make), template) == ""


@pytest.mark.parametrize(
    ("taint", "tolerations", "does"),
    [
        ({"key": "team", "value": "a", "effect": "NoSchedule"}, [], False),
        ({"key": "team", "value": "a", "effect": "NoExecute"}, [], False),
        ({"key": "team", "value": "a", "effect": "PreferNoSchedule"}, [], True),
        ({"key": "team", "value": "a", "effect": "NoSchedule"}, [{"key": "team", "value": "a"}], True),
        ({"key": "team", "value": "a", "effect": "NoSchedule"}, [{"key": "team", "value": "b"}], False),
        ({"key": "team", "value": "a", "effect": "NoSchedule"}, [{"operator": "Exists"}], True),
        (
            {"key": "team", "effect": "NoSchedule"},
            [{"key": "team", "operator": "Exists", "effect": "NoExecute"}],
            False,
        ),
        ({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}, [], True),
    ],
)
def test_a_taint_that_is_not_tolerated_excludes_the_node(make, taint, tolerations, does):
    said = ineligible(node(taints=[taint]), facts(make), {"spec": {"tolerations": tolerations}})
    assert (said == "") == does


def test_the_taint_of_the_nodes_own_resource_is_tolerated_by_every_engine(make):
    slices = facts(make, resourceName="nvidia.com/mig-1g.10gb")
    taint = {"key": "nvidia.com/mig-1g.10gb", "effect": "NoSchedule"}
    assert ineligible(node(taints=[taint]), slices, None) == ""


def test_nodes_excluded_for_the_same_reason_are_listed_together(make):
    service = parse_service(make.service(template={"spec": {"nodeSelector": {"gpu": "h100"}}}))
    offers = [NodeOffer(facts(make, f"node-{index}"), ()) for index in range(6)]
    h100 = {"gpu": "h100"}
    nodes = {
        "node-2": node("node-2", labels=h100),
        "node-4": node("node-4", labels=h100, unschedulable=True),
    }
    judged = verdicts(
        (offer.node for offer in offers), lambda name: nodes.get(name, node(name)), service.spec.template.to_dict()
    )
    kept, left_out = reachable(offers, judged)
    assert [(offer.node.name, offer.closed) for offer in kept] == [("node-2", ""), ("node-4", "cordoned")]
    assert tuple(map(str, left_out)) == (
        "node-0, node-1, node-3 and 1 more node: spec.template.spec.nodeSelector wants gpu=h100",
        "node-4: cordoned",
    )
    assert len(summarised((str(index), str(index)) for index in range(20))) == 8


def test_a_closed_node_is_known_and_offers_nothing(make):
    offer = NodeOffer(facts(make), ("node-1-g0",), promised=1)
    judged = verdicts([offer.node], lambda name: node(name, unschedulable=True), {})
    [kept], left_out = reachable([offer], judged)
    assert (kept.node, kept.free, kept.promised, kept.closed) == (offer.node, (), 0, "cordoned")
    assert left_out == (LeftOut("node-1", "cordoned"),)
    assert selectable([offer], judged) == (offer,)


def test_where_no_node_is_closed_the_offers_themselves_are_passed_on(make):
    offers = (NodeOffer(facts(make), ("node-1-g0",)),)
    assert reachable(offers, {}) == (offers, ())
    assert reachable(offers, {})[0] is offers


def test_a_node_whose_labels_do_not_say_yet_what_it_is_takes_no_pods(make):
    bare = {"metadata": {"name": "node-1", "labels": {}}, "spec": {}}
    assert closed(bare, facts(make), None) == "it has no label uellm.io/gpu.count yet, which its profiler writes"


@pytest.mark.parametrize(("simulated", "does"), [(False, True), (True, False)])
def test_the_labels_of_gpu_feature_discovery_do_for_real_gpus_that_are_alike(make, simulated, does):
    discovered = {"metadata": {"name": "node-1", "labels": {"nvidia.com/gpu.count": "1"}}, "spec": {}}
    profile = make.profile("node-1", (None, None))
    profile["status"]["source"] = "Simulated" if simulated else "NVML"
    assert (closed(discovered, profiled_node(profile).facts, None) == "") == does


def test_of_unlike_gpus_the_labels_of_gpu_feature_discovery_say_too_little(make):
    discovered = {"metadata": {"name": "node-1", "labels": {"nvidia.com/gpu.count": "2"}}, "spec": {}}
    profile = make.profile("node-1", (None, None))
    profile["status"]["source"] = "NVML"
    profile["status"]["devices"][1]["memoryBytes"] = 2000
    assert "uellm.io/gpu.count" in closed(discovered, profiled_node(profile).facts, None)
