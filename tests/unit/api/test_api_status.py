"""The status's schema accepts everything that the planner and the hardware types write."""

from __future__ import annotations

from uellm.api import PlanStatus, parse
from uellm.planner.result import Alternative, MemoryUse, Plan, Predicted, Stage


def test_nothing_of_a_plan_is_pruned() -> None:
    memory = MemoryUse(weights=5, kv=4, activations=3, graphs=2, context=1, free=9)
    plan = Plan(
        gpus_per_replica=2,
        tensor=1,
        pipeline=2,
        layers=(5, 3),
        max_num_batched_tokens=2048,
        max_num_seqs=64,
        kv_cache_bytes=4,
        stages=(Stage(("GPU-a",), 15, "", memory), Stage(("GPU-b",), 15, "Simulated A", memory)),
        nodes=("node-1",),
        predicted=Predicted(kv_cache_tokens=4096, ttft_ms=120, tpot_ms=12.4, requests_per_s=3.25),
        recommended_replicas=2,
        assumptions=("prompts of 512 tokens: none were given",),
        alternatives=(Alternative(1, 1, 1, (), ("node-2",), "needs 2 GiB more"),),
        profile_hash="f" * 64,
        kv_cache_tokens_required=4096,
        node_classes=("p5",),
    )
    assert parse(PlanStatus, plan.to_dict()).to_dict() == plan.to_dict()
