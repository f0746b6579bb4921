"""What a node's labels must say for the pods of a plan."""

from __future__ import annotations

from uellm.planner import plan
from uellm.planner.handover.node_needs import node_needs


def test_a_node_whose_small_gpu_others_hold_is_not_ruled_out_by_its_label(build) -> None:
    # The label of a node with unlike GPUs tells its smallest, here a T4 that holds no Llama 8B.
    mixed = build.node("a", "A10 T4")
    free = build.request(build.offer(mixed, taken=[1]))
    found = plan(free)
    assert (found.nodes, found.gpus_per_replica) == (("a",), 1)
    assert node_needs(found, free, "nvidia.com/gpu").smallest_mib == mixed.devices[1].memory_bytes >> 20


def test_a_node_of_gpus_that_all_hold_a_replica_needs_no_smaller_ones(build) -> None:
    alike = build.request(build.node("a", "A10 A10"))
    found = plan(alike)
    needs = node_needs(found, alike, "nvidia.com/gpu")
    assert found.gpus_per_replica == 1
    assert needs.smallest_mib == needs.memory_mib < alike.nodes[0].node.devices[0].memory_bytes >> 20
