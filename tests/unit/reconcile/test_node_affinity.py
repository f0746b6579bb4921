"""A pod's node affinity, read as the scheduler reads it, against nodes with the labels that they would have."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from helpers.sizes import GIB
from uellm.api.node_labels import own_labels
from uellm.hardware import Device, Node, NodeNeeds
from uellm.reconcile.children.merge import merge_template
from uellm.reconcile.children.node_affinity import node_affinity
from uellm.reconcile.planning.eligible_nodes import excluded

NEEDS = NodeNeeds("nvidia.com/gpu", gpus=2, memory_mib=20 * 1024, smallest_mib=8 * 1024, capability=(7, 5))
DISCOVERED = {
    "nvidia.com/gpu.count": "2",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.compute.major": "9",
    "nvidia.com/gpu.compute.minor": "0",
    "nvidia.com/gpu.sharing-strategy": "none",
}


def gpus(*memory_gib: int, product: str = "NVIDIA L4", capability: str = "8.9", resource: str = "nvidia.com/gpu"):
    return [
        Device(f"g{index}", index, product, size * GIB, resource, compute_capability=capability)
        for index, size in enumerate(memory_gib)
    ]


def labelled(*memory_gib: int, simulated: bool = False, **facts: str) -> dict[str, str]:
    return own_labels(gpus(*memory_gib, **facts), simulated=simulated)


def admits(labels: dict[str, str], needs: NodeNeeds = NEEDS, *, extender: bool = True) -> bool:
    template = {"spec": {"affinity": {"nodeAffinity": node_affinity(needs, extender=extender)}}}
    node = {"metadata": {"name": "n", "labels": labels}, "spec": {}}
    return not excluded(node, Node("n", ()), template)


def test_a_node_with_enough_alike_gpus_is_taken_by_the_profilers_labels() -> None:
    assert admits(labelled(22, 22))
    assert admits(labelled(20, 20, 20))
    assert not admits(labelled(22))
    assert not admits(labelled(19, 19))
    assert not admits({})


def test_a_node_is_taken_by_the_labels_of_gpu_feature_discovery() -> None:
    assert admits(DISCOVERED)
    assert not admits(DISCOVERED | {"nvidia.com/gpu.count": "1"})
    assert not admits(DISCOVERED | {"nvidia.com/gpu.memory": "15360"})


@pytest.mark.parametrize(("capability", "does"), [("7.0", False), ("7.5", True), ("8.0", True), ("10.0", True)])
def test_gpus_below_the_compute_capability_are_not_taken(capability: str, does: bool) -> None:
    major, minor = capability.split(".")
    discovered = {"nvidia.com/gpu.compute.major": major, "nvidia.com/gpu.compute.minor": minor}
    assert admits(DISCOVERED | discovered) == does
    assert admits(labelled(22, 22, capability=capability)) == does


@pytest.mark.parametrize(
    ("capability", "does"), [("7.0", False), ("7.5", True), ("9.0", True), ("10.0", False), ("12.1", False)]
)
@pytest.mark.parametrize("least", [(7, 5), (8, 0)])
def test_gpus_from_the_bound_of_compute_capability_on_are_not_taken(
    capability: str, does: bool, least: tuple[int, int]
) -> None:
    major, minor = capability.split(".")
    needs = replace(NEEDS, capability=least, capability_below=(10, 0))
    does = does and (int(major), int(minor)) >= least
    discovered = {"nvidia.com/gpu.compute.major": major, "nvidia.com/gpu.compute.minor": minor}
    assert admits(DISCOVERED | discovered, needs) == does
    assert admits(labelled(22, 22, capability=capability), needs) == does


def test_gpus_whose_compute_capability_the_driver_does_not_tell_are_taken_as_the_planner_takes_them() -> None:
    assert admits(labelled(22, 22, capability=""))
    assert admits(labelled(22, 22, capability=""), extender=False)
    assert admits(labelled(80, 10, capability=""))
    assert not admits(labelled(19, 19, capability=""))


@pytest.mark.parametrize("strategy", ["time-slicing", "mps"])
def test_shared_gpus_are_not_taken(strategy: str) -> None:
    shared = {"nvidia.com/gpu.sharing-strategy": strategy}
    assert not admits(DISCOVERED | shared)
    assert not admits(labelled(22, 22) | shared)


def test_unlike_gpus_are_left_to_the_extender_and_taken_whole_by_any_other_scheduler() -> None:
    # GPU Feature Discovery describes the larger one alone.
    assert admits(DISCOVERED | labelled(80, 10))
    assert admits(DISCOVERED | labelled(80, 10), extender=False)
    assert admits(DISCOVERED | labelled(80, 80, 10))
    assert not admits(DISCOVERED | labelled(80, 80, 10), extender=False)
    assert not admits(DISCOVERED | labelled(80, 4))


def test_simulated_and_real_gpus_are_kept_apart() -> None:
    simulated = replace(NEEDS, simulated=True, capability=None)
    assert admits(labelled(22, 22, simulated=True, capability=""), simulated)
    assert not admits(labelled(22, 22), simulated)
    assert not admits(labelled(22, 22, simulated=True))
    assert not admits(DISCOVERED, simulated)


def test_a_plan_that_needs_a_product_takes_no_other() -> None:
    needs = replace(NEEDS, products=("NVIDIA L4",))
    assert admits(labelled(22, 22), needs)
    assert not admits(labelled(22, 22, product="NVIDIA T4"), needs)
    assert not admits(DISCOVERED, needs)
    assert admits(DISCOVERED, replace(NEEDS, products=("NVIDIA H100 80GB HBM3",)))


def test_slices_have_labels_of_their_own_resource() -> None:
    needs = NodeNeeds("nvidia.com/mig-1g.10gb", gpus=1, memory_mib=9000, smallest_mib=9000)
    slices = labelled(10, resource="nvidia.com/mig-1g.10gb")
    assert slices["uellm.io/mig-1g.10gb.count"] == "1"
    assert admits(slices, needs)
    assert not admits(labelled(80), needs)
    assert admits({"nvidia.com/mig-1g.10gb.count": "7", "nvidia.com/mig-1g.10gb.memory": "9728"}, needs)


def test_the_users_affinity_holds_beside_every_alternative() -> None:
    ours = {"spec": {"affinity": {"nodeAffinity": node_affinity(NEEDS, extender=True)}}}
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    merged = merge_template(ours, {"spec": {"affinity": {"nodeAffinity": required}}})
    for labels in (DISCOVERED, labelled(22, 22), labelled(80, 10)):
        for zone, does in (("a", True), ("b", False)):
            node = {"metadata": {"name": "n", "labels": labels | {"zone": zone}}, "spec": {}}
            assert (not excluded(node, Node("n", ()), merged)) == does


def test_it_names_no_node_and_has_values_that_a_label_may_have() -> None:
    text = json.dumps(node_affinity(replace(NEEDS, memory_mib=0, smallest_mib=0), extender=True))
    assert "metadata.name" not in text
    assert '"-1"' not in text


def test_labels_are_values_that_kubernetes_takes() -> None:
    labels = own_labels(gpus(22, product="NVIDIA (R) GPU, very " + "long " * 20), simulated=False)
    assert labels["uellm.io/gpu.product"].startswith("NVIDIA-R-GPU-very-long")
    assert len(labels["uellm.io/gpu.product"]) <= 63
    assert own_labels(gpus(22, product=""), simulated=False).keys() == {
        "uellm.io/gpu.count",
        "uellm.io/gpu.memory",
        "uellm.io/gpu.capability",
    }
