"""Targets decide where speeds are measured: which GPUs, how many in all, and the report if no placement meets them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from uellm.planner import plan
from uellm.planner.request import EngineRequest, SloClass, Workload

LOAD = Workload(requests_per_s=2.0, prompt_tokens_mean=512, output_tokens_mean=128)


def strict(**targets: float) -> tuple[SloClass, ...]:
    return (SloClass("chat", **targets),)


def scaled(request, factor: float):
    """The same nodes with GPUs whose memory is faster by this factor."""
    nodes = [
        replace(
            offer,
            node=replace(
                offer.node,
                devices=tuple(replace(d, memory_bytes_per_s=d.memory_bytes_per_s * factor) for d in offer.node.devices),
            ),
        )
        for offer in request.nodes
    ]
    return replace(request, nodes=tuple(nodes))


def test_a_node_that_misses_a_target_is_rejected_if_another_meets_it(build) -> None:
    nodes = [build.node("a", "L4"), build.node("b", "H100")]
    same = EngineRequest(args=("--max-num-seqs", "256"))
    assert plan(build.request(*nodes, engine=same)).nodes == ("b", "a")
    made = plan(build.request(*nodes, classes=strict(tpot_s=0.02)))
    assert made.nodes == ("b",)
    assert made.slo.feasible


def test_a_target_takes_more_gpus_than_memory_would(build) -> None:
    node = build.all_links(build.node("a", "L4 L4 L4 L4"))
    assert plan(build.request(node)).gpus_per_replica == 1
    made = plan(build.request(node, classes=strict(tpot_s=0.03)))
    assert made.tensor == 4
    assert made.predicted.tpot_ms <= 30
    lost = {entry.gpus: entry.rejected for entry in made.alternatives}
    assert re.search(r"TPOT \d+ ms predicted, target of class chat 30 ms", lost[1])


def test_the_fewest_gpus_are_those_of_all_replicas_together(build) -> None:
    """One H100 does what many L4 do."""
    load = replace(LOAD, requests_per_s=6.0)
    slow = plan(build.request(build.node("a", "L4 " * 8), workload=load, classes=strict(tpot_s=0.1)))
    both = plan(
        build.request(build.node("a", "L4 " * 8), build.node("b", "H100"), workload=load, classes=strict(tpot_s=0.1))
    )
    assert slow.gpus_per_replica * slow.recommended_replicas > 1
    assert (both.nodes, both.gpus_per_replica, both.recommended_replicas) == (("b",), 1, 1)


def test_replicas_without_room_now_rank_after_those_with_room(build) -> None:
    """One H100 would provide half of what is needed; all L4s are free."""
    load = replace(LOAD, requests_per_s=80.0)
    same = EngineRequest(args=("--max-num-seqs", "256"))
    fast, slow = build.node("b", "H100"), [build.node(f"a{index}", "L4 " * 8) for index in range(8)]
    alone = plan(build.request(fast, workload=load, classes=strict(tpot_s=0.1)))
    assert alone.recommended_replicas > 1
    assert "have room for 1 now" in " ".join(alone.assumptions)
    made = plan(build.request(fast, *slow, workload=load, classes=strict(tpot_s=0.1), engine=same))
    room = sum(8 // made.gpus_per_replica for name in made.nodes if name != "b") + ("b" in made.nodes)
    assert room >= made.recommended_replicas


def test_the_policy_decides_between_equal_numbers_of_gpus(build) -> None:
    """Two replicas of one GPU, or one of two: LR weighs time most, HE only the devices of a replica."""
    node = build.all_links(build.node("a", "L4 L4"))
    load = Workload(requests_per_s=5.0, prompt_tokens_mean=512, output_tokens_mean=128)
    made = {
        policy: plan(build.request(node, workload=load, classes=strict(tpot_s=0.1), policy=policy))
        for policy in ("LR", "HE")
    }
    assert {m.gpus_per_replica * m.recommended_replicas for m in made.values()} == {2}
    assert (made["LR"].gpus_per_replica, made["HE"].gpus_per_replica) == (2, 1)


def test_infeasible_targets_get_the_nearest_plan(build) -> None:
    node = build.all_links(build.node("a", "L4 L4 L4 L4"))
    made = plan(build.request(node, classes=strict(tpot_s=0.01)))
    assert not made.slo.feasible
    assert made.tensor == 4
    assert made.slo.constraint.startswith("TPOT 10.0 ms of class chat: the best for a lone request is ")
    assert "with 4 = tp4 x pp1 on a" in made.slo.constraint
    assert "cannot be met: the plan is for 1.1 x the best" in " ".join(made.assumptions)


def test_the_smallest_change_of_a_target_is_one_that_helps(build) -> None:
    request = build.request(build.node("a", "L4 L4"), classes=strict(tpot_s=0.01), workload=LOAD)
    change = plan(request).slo.change
    told = float(re.match(r"a target of TPOT ([\d.]+) ms for chat", change).group(1)) / 1e3
    assert plan(replace(request, classes=strict(tpot_s=told))).slo.feasible
    assert not plan(replace(request, classes=strict(tpot_s=told * 0.97))).slo.feasible


def test_the_smallest_change_of_the_hardware_is_one_that_helps(build) -> None:
    request = build.request(build.node("a", "L4"), classes=strict(tpot_s=0.04))
    change = plan(request).slo.change
    factor = float(re.search(r"GPUs with ([\d.]+) x the memory bandwidth", change).group(1))
    assert plan(scaled(request, factor)).slo.feasible
    assert not plan(scaled(request, factor - 0.06)).slo.feasible


def test_targets_missed_together_are_reported_together(build) -> None:
    made = plan(build.request(build.node("a", "L4"), classes=strict(ttft_s=0.01, tpot_s=0.01)))
    assert "TTFT 10.0 ms of class chat" in made.slo.constraint
    assert "TPOT 10.0 ms of class chat" in made.slo.constraint
    assert " and TPOT" in made.slo.change


def test_an_end_to_end_target_counts_too(build) -> None:
    request = build.request(build.node("a", "L4"), build.node("b", "H100"), workload=LOAD)
    assert plan(replace(request, classes=strict(e2e_s=4.0))).nodes == ("b",)
    assert not plan(replace(request, classes=strict(e2e_s=0.5))).slo.feasible


def test_without_targets_or_measurements_there_is_no_verdict(build) -> None:
    assert plan(build.request(build.node("a", "L4"), workload=LOAD)).slo is None
    blank = build.node("a", [build.unmeasured("a", 0)])
    assert plan(build.request(blank, classes=strict(tpot_s=0.001))).slo is None


def test_a_plan_predicted_to_meet_the_targets_precedes_an_unmeasured_one(build) -> None:
    blank = build.node("a", [build.unmeasured("a", 0, "H100")])
    request = build.request(blank, build.node("b", "L4 L4"), classes=strict(tpot_s=0.2))
    assert plan(request).nodes[0] == "b"


def test_targets_hold_whichever_gpus_the_kubelet_hands_out(build) -> None:
    """Two fast GPUs and two of half their speed: a pod may get the slow ones."""
    devices = [build.gpu("a", index, "A10", memory_bytes_per_s=5e11 if index < 2 else 2.5e11) for index in range(4)]
    request = build.request(build.node("a", devices), gpus_max=1, classes=strict(tpot_s=0.06))
    assert not plan(request).slo.feasible
    assert plan(replace(request, allocation="DRA")).slo.feasible
    easy = plan(replace(request, classes=strict(tpot_s=0.2)))
    assert "with the slowest GPUs that the kubelet may choose on a: TTFT" in " ".join(easy.assumptions)


def test_the_plan_names_the_limit_that_it_reaches_first(build) -> None:
    assert "memory of stage 0 (gpu-0): " in plan(build.request(build.node("a", "L4"))).binding
    tight = plan(build.request(build.node("a", "H100"), classes=strict(tpot_s=0.0105)))
    assert tight.binding.startswith("TPOT of class chat: ")
    rate = plan(build.request(build.node("a", "H100"), workload=replace(LOAD, requests_per_s=100.0)))
    assert f"rate for each of {rate.recommended_replicas} replicas" in rate.binding


def test_the_plan_reports_its_search(build) -> None:
    figures = plan(build.request(build.node("a", "L4 " * 8))).search.to_dict()
    assert figures["optimal"] is True
    assert figures["gapPercent"] == "0.00"
    assert figures["shapes"] > figures["leftOut"] > 0
    assert figures["placements"] >= 1


@pytest.mark.parametrize("nodes", [1, 40])
def test_identical_nodes_are_evaluated_once(build, nodes: int) -> None:
    request = build.request(
        *(build.node(f"n{index:02}", "L4 L4") for index in range(nodes)), classes=strict(tpot_s=0.2)
    )
    made = plan(request)
    assert len(made.nodes) == nodes
    assert made.search.placements <= 4
