"""The status of a GPUNodeClass, and classes that are remembered from nodes that were seen."""

from __future__ import annotations

from helpers.sizes import GIB
from uellm.api import parse, parse_node_class
from uellm.api.gpunodeclass import GPUNodeClassStatus
from uellm.reconcile.node_class import node_class
from uellm.reconcile.profiled_node import profiled_node
from uellm.reconcile.status.node_classes import class_status, to_remember

NOW = "2026-01-01T00:00:00Z"
LABELS = {"node.kubernetes.io/instance-type": "p5", "kubernetes.io/hostname": "n1"}


def document(memory_gib=80, **spec):
    device = {"index": 0, "product": "H100", "memoryBytes": memory_gib * GIB}
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeClass",
        "metadata": {"name": "p5"},
        "spec": {"labels": {"node.kubernetes.io/instance-type": "p5"}, "devices": [device], **spec},
    }


def seen(name="n1", memory_gib=80, labels=LABELS, product="H100", **facts):
    device = {"index": 0, "uuid": f"{name}-0", "product": product, "memoryBytes": memory_gib * GIB, **facts}
    profile = {"metadata": {"name": name}, "status": {"devices": [device]}}
    return profiled_node(profile), {"metadata": {"name": name, "labels": labels}, "spec": {}}


def status(given, nodes=(), before=None):
    return class_status(node_class(given), nodes, before or {}, generation=3, now=NOW)


def test_the_status_counts_the_nodes_of_the_class_and_sums_up_its_gpus():
    found = status(document(), [seen("n1"), seen("n2"), seen("n3", labels={})])
    assert (found["nodes"], found["summary"]) == (2, {"gpus": "1", "products": "1 x H100"})
    [ready] = found["conditions"]
    assert (ready["status"], ready["reason"], ready["observedGeneration"]) == ("True", "Usable", 3)
    assert parse(GPUNodeClassStatus, found).to_dict() == found


def test_a_node_that_is_smaller_than_its_class_is_told_in_the_class():
    [ready] = status(document(), [seen("n1", 40)])["conditions"]
    assert (ready["status"], ready["reason"]) == ("False", "NodeSmaller")
    assert ready["message"] == (
        "no plan uses it: node n1 carries its labels and has 1 x H100 (40.0 GiB) instead of 1 x H100 (80.0 GiB)"
    )


def whole_or_sick(name, count):
    devices = [
        {"index": index, "uuid": f"{name}-{index}", "product": "H100", "memoryBytes": 80 * GIB}
        for index in range(count)
    ]
    profile = {"metadata": {"name": name}, "status": {"devices": devices}}
    return profiled_node(profile), {"metadata": {"name": name, "labels": LABELS}, "spec": {}}


def test_one_sick_node_does_not_take_its_class_out_of_use_and_is_told():
    nodes = [whole_or_sick(f"n{index}", 8) for index in range(3)]
    [made] = to_remember(nodes, [])
    every = [*nodes, whole_or_sick("sick", 7)]
    [ready] = status(made, every)["conditions"]
    assert (ready["status"], ready["reason"]) == ("True", "Usable")
    assert ready["message"] == (
        "services that fit on no node may be planned for it; node sick carries its labels and has 7 x H100 (80.0 GiB) "
        "instead of 8 x H100 (80.0 GiB)"
    )
    most = [*every, *(whole_or_sick(f"sick{index}", 7) for index in range(3))]
    assert status(made, most)["conditions"][0]["reason"] == "NodeSmaller"


def test_a_sick_node_or_one_in_slices_is_no_class_of_its_own():
    whole, sick = [whole_or_sick(f"n{index}", 8) for index in range(2)], whole_or_sick("a-sick", 7)
    cut = seen("a-cut", 40, product="H100 MIG 3g.40gb", mig=True)
    [made] = to_remember([cut, sick, *whole], [])
    assert len(made["spec"]["devices"]) == 8
    assert to_remember([cut, sick, *whole], [node_class(made)]) == []


def test_other_gpus_under_the_same_labels_and_what_most_nodes_have_are_remembered():
    other = seen("n2", 22, product="L4")
    assert len(to_remember([whole_or_sick("n1", 8), other], [])) == 2
    [made] = to_remember([seen("n1", 40), seen("n2", 40)], [node_class(document(80))])
    assert made["spec"]["devices"][0]["memoryBytes"] == 40 * GIB


def test_a_class_that_cannot_be_read_says_which_field_is_at_fault():
    [ready] = status(document(links=[{"a": 0, "b": 1}]))["conditions"]
    assert (ready["reason"], ready["message"]) == ("InvalidClass", "spec.links: must name only indices of devices")


def test_the_time_of_a_condition_changes_only_with_its_status():
    before = status(document())
    again = class_status(node_class(document()), [], before, generation=3, now="2026-02-02T00:00:00Z")
    assert again == before


def test_of_every_kind_of_node_that_is_seen_one_class_is_remembered():
    nodes = [seen("n1"), seen("n2"), seen("n3", product="L4", memory_gib=22)]
    made = [parse_node_class(each) for each in to_remember(nodes, [])]
    assert [each.metadata["name"].rpartition("-")[0] for each in made] == ["1x-h100", "1x-l4"]
    assert made[0].spec.labels["node.kubernetes.io/instance-type"] == "p5"
    assert made[0].spec.labels["nvidia.com/gpu.count"] == "1"
    assert "kubernetes.io/hostname" not in made[0].spec.labels
    # The name depends on the kind alone, so that another operator makes the same.
    assert [each["metadata"] for each in to_remember(nodes[1:], [])] == [each.metadata for each in made]


def test_memory_that_something_else_holds_on_one_node_is_no_fact_of_its_class():
    held = seen("n1", memoryHeldBytes=30 * GIB)
    assert held[0].facts.devices[0].memory_bytes == 50 * GIB
    [ready] = status(document(), [held])["conditions"]
    assert ready["reason"] == "Usable"
    [made] = to_remember([held], [])
    assert (made["spec"]["devices"][0]["memoryBytes"], made["metadata"]) == (
        80 * GIB,
        to_remember([seen("n1")], [])[0]["metadata"],
    )


def test_nodes_with_shared_gpus_are_not_remembered():
    assert to_remember([seen("n1", shares=4)], []) == []


def test_a_kind_of_node_that_has_a_class_is_not_remembered_again():
    assert to_remember([seen("n1")], [node_class(document())]) == []
    [made] = to_remember([seen("n1")], [node_class(document(40))])
    assert to_remember([seen("n1")], [node_class(made)]) == []
