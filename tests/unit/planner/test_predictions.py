"""The cost model against known results: a paper's table, a pull request's figures, and properties of any roofline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from helpers.sizes import GIB
from uellm.hardware import Device, Link
from uellm.models import read_architecture
from uellm.planner import plan
from uellm.planner.cost.demand import Demand
from uellm.planner.cost.pipeline import Pipeline
from uellm.planner.cost.predict import Times, predict
from uellm.planner.cost.rates import Costs, Links
from uellm.planner.cost.work import stage_loads
from uellm.planner.efficiency import Efficiency
from uellm.planner.request import Overrides, Workload
from uellm.planner.shape import Steps
from uellm.planner.vllm.partition import even_split

SIZES = Steps(1024, 256)


def demand(**changes: Any) -> Demand:
    facts = {
        "prompt_tokens": 1155,
        "output_tokens": 211,
        "requests_per_s": 4.0,
        "concurrency": 40.0,
        "service_concurrency": 40.0,
        "tpot_s": 0.06,
        "ttft_s": 1.0,
        "kv_tokens": 1024,
        "assumptions": (),
    }
    return Demand(**{**facts, **changes})


def times(
    config: dict[str, Any],
    groups: list[tuple[Device, ...]],
    layers: tuple[int, ...] | None = None,
    links: tuple[Link, ...] = (),
    *,
    kv_tokens: int = 300_000,
    sizes: Steps = SIZES,
    **changes: Any,
) -> Times:
    model = read_architecture(config)
    wanted = demand(**changes)
    loads = stage_loads(model, groups, layers or even_split(model.layers, len(groups)))
    costs = Costs.of(model, wanted.prompt_tokens, wanted.output_tokens)
    found = predict(loads, Links(links), costs, wanted, kv_tokens, sizes)
    assert found is not None
    return found


def together(devices: list[Device], bytes_per_s: float = 2e11, kind: str = "NVLink") -> tuple[Link, ...]:
    return tuple(Link(a.uuid, b.uuid, kind, bytes_per_s, 5e-6) for a in devices for b in devices if a is not b)


# UELLM, table 1 (arXiv 2409.14961): layers 0-15|16-32 ... 0-31|32 of 33 on two RTX 3090, the first limited to 350 W and
# the second to 150 W; tokens/s.
TABLE_1 = {(16, 17): 11.19, (20, 13): 13.09, (24, 9): 14.85, (28, 5): 17.23, (32, 1): 22.55}


def capped_pair(build) -> list[Device]:
    """A 3090 with NVIDIA's figures, and one that 150 W slow down to .31 of them, by a line through the table's rows."""
    whole = build.gpu("a", 0, memory_bytes=24 * GIB, bf16_flops_per_s=7.1e13, memory_bytes_per_s=9.36e11)
    return [whole, replace(whole, uuid="a-gpu-1", index=1, bf16_flops_per_s=2.2e13, memory_bytes_per_s=2.9e11)]


def test_the_papers_five_splits_come_out_in_its_order(build) -> None:
    fast, slow = capped_pair(build)
    config = {**build.config, "num_hidden_layers": 33}
    links = together([fast, slow], 1.0e10, "PIX")
    told = {
        split: 1.0 / times(config, [(fast,), (slow,)], split, links, requests_per_s=None).tpot_s for split in TABLE_1
    }
    assert sorted(told, key=told.__getitem__) == sorted(TABLE_1, key=TABLE_1.__getitem__)
    # From the first row to the last the speed doubles, in the table and here.
    assert told[32, 1] / told[16, 17] == pytest.approx(TABLE_1[32, 1] / TABLE_1[16, 17], rel=0.15)


def test_of_two_unlike_gpus_the_plan_takes_the_papers_best_split_for_one_request(build) -> None:
    node = build.node("a", capped_pair(build))
    config = {**build.config, "num_hidden_layers": 33, "num_key_value_heads": 2, "vocab_size": 32000}
    request = build.request(
        build.all_links(node, "PIX", 1.0e10), config=config, overrides=Overrides(pipeline=2, tensor=1), gpus_min=2
    )
    made = plan(replace(request, objective="Latency"))
    assert made.layers == (32, 1)
    assert made.stages[0].devices == ("a-gpu-0",)


def seventy_on_l4s(build, **changes: Any):
    """vLLM's pull request 6920: Llama 70B in 16 bits over eight L4 of 24 GB, pipeline 8."""
    l4 = {"memory_bytes": int(22.5 * GIB), "bf16_flops_per_s": 1.0e14, "memory_bytes_per_s": 2.6e11}
    node = build.all_links(build.node("a", [build.gpu("a", index, **l4) for index in range(8)]), "PHB", 1.2e10)
    facts = {"config": build.large, "max_model_len": 4096, "gpus_min": 8, "gpus_max": 8}
    facts["overrides"] = Overrides(tensor=1, pipeline=8)
    return build.request(node, **{**facts, **changes})


def test_a_70b_on_eight_l4s_has_fewer_layers_on_its_end_stages_and_more_kv_blocks_than_the_even_split(build) -> None:
    load = Workload(requests_per_s=0.4, prompt_tokens_mean=512, output_tokens_mean=256)
    even, made = (plan(seventy_on_l4s(build, policy=policy, workload=load)) for policy in ("Even", "HELR"))
    assert even.layers == (10,) * 8
    assert made.layers[0] < max(made.layers)
    assert made.layers[-1] < max(made.layers)
    # Measured there: 1,476 -> 3,078 blocks of 16 tokens, and 244.5 s -> 167.7 s for the same requests.
    assert made.predicted.kv_cache_tokens > 1.5 * even.predicted.kv_cache_tokens
    assert made.predicted.requests_per_s > 1.4 * even.predicted.requests_per_s


@pytest.mark.parametrize("figure", ["bf16_flops_per_s", "memory_bytes_per_s"])
def test_a_faster_device_is_never_slower(build, figure: str) -> None:
    devices = [build.gpu("a", index, "H100") for index in range(2)]
    before = times(build.config, [(devices[0],), (devices[1],)])
    better = replace(devices[1], **{figure: 2 * getattr(devices[1], figure)})
    after = times(build.config, [(devices[0],), (better,)])
    assert after.ttft_s <= before.ttft_s * (1 + 1e-4)
    assert after.tpot_s <= before.tpot_s * (1 + 1e-4)
    assert after.requests_per_s >= before.requests_per_s * (1 - 1e-4)


def test_faster_links_are_never_slower_and_slow_ones_bind(build) -> None:
    devices = [build.gpu("a", index, "H100") for index in range(4)]
    rates = [2e8, 2e9, 2e10, 2e11]
    told = [times(build.config, [tuple(devices)], None, together(devices, rate), requests_per_s=None) for rate in rates]
    assert [entry.tpot_s for entry in told] == sorted((entry.tpot_s for entry in told), reverse=True)
    assert told[0].binding == "link"
    assert told[-1].tpot_s < told[0].tpot_s / 2


def test_tensor_parallelism_pays_over_nvlink_and_costs_over_a_slow_bus(build) -> None:
    devices = [build.gpu("a", index, "H100") for index in range(2)]
    alone = times(build.config, [(devices[0],)])
    assert times(build.config, [tuple(devices)], None, together(devices)).tpot_s < alone.tpot_s
    assert times(build.config, [tuple(devices)], None, together(devices, 5e8, "SYS")).tpot_s > alone.tpot_s


def test_a_pipeline_adds_throughput_and_no_speed_for_one_request(build) -> None:
    devices = [build.gpu("a", index, "H100") for index in range(2)]
    links = together(devices)
    one, two = times(build.config, [(devices[0],)]), times(build.config, [(devices[0],), (devices[1],)], None, links)
    assert two.requests_per_s > 1.5 * one.requests_per_s
    alone = {"requests_per_s": None}
    assert times(build.config, [(devices[0],), (devices[1],)], None, links, **alone).tpot_s > (
        0.99 * times(build.config, [(devices[0],)], **alone).tpot_s
    )


def test_the_reported_rate_meets_both_targets_and_a_looser_target_never_lowers_it(build) -> None:
    device = build.gpu("a", 0, "H100")
    rates = []
    for tpot in (0.02, 0.04, 0.08, 0.16):
        most = times(build.config, [(device,)], tpot_s=tpot).requests_per_s
        at_most = times(build.config, [(device,)], tpot_s=tpot, requests_per_s=most)
        assert at_most.tpot_s <= tpot * 1.01
        assert at_most.ttft_s <= 1.0 * 1.01
        rates.append(most)
    assert rates == sorted(rates)


def test_ttft_grows_with_load_up_to_the_largest_rate(build) -> None:
    device = build.gpu("a", 0, "H100")
    told = [times(build.config, [(device,)], requests_per_s=rate).ttft_s for rate in (None, 1.0, 5.0, 10.0, 1e4, 1e5)]
    assert told == sorted(told)
    assert told[-1] == told[-2] <= 1.01


def test_a_target_that_no_request_meets_alone_does_not_stop_the_rest(build) -> None:
    device = build.gpu("a", 0, "L4")  # 16 GB of weights at 208 GB/s: 77 ms a token at best
    told = times(build.config, [(device,)], tpot_s=0.03, kv_tokens=30_000)
    assert told.tpot_s > 0.03
    assert told.requests_per_s > 0.1


def test_little_kv_cache_binds(build) -> None:
    device = build.gpu("a", 0, "H100")
    scarce = times(build.config, [(device,)], kv_tokens=6_000)
    plenty = times(build.config, [(device,)], kv_tokens=300_000)
    assert scarce.binding == "KV cache"
    assert plenty.binding == "compute"
    assert scarce.requests_per_s < plenty.requests_per_s


def test_the_published_step_model_predicts_the_same_times(build) -> None:
    """`--max-batched-tokens auto`, the sidecar's prior and the predictions use the same model."""
    model = read_architecture(build.config)
    device = build.gpu("a", 0, "H100")
    costs = Costs.of(model, 1155, 211)
    pipeline = Pipeline(stage_loads(model, [(device,)], (32,)), None, costs)
    step = times(build.config, [(device,)]).step
    assert step is not None
    for sequences in (1, 16, 64, 128):
        # The model spreads what any step with prompts costs over the tokens of a full chunk.
        for prefill, apart in ((0, 0.1), (300, 0.4), (600, 0.3), (900, 0.2)):
            told = step.step_s(prefill, sequences * costs.held_tokens, sequences)
            assert told == pytest.approx(pipeline.round_s(prefill, sequences), rel=apart)


MIXTURE = {
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def test_a_step_of_one_token_reads_two_experts_of_eight_and_one_of_many_all(build) -> None:
    model = read_architecture({**build.config, **MIXTURE, "vocab_size": 32000})
    loads = stage_loads(model, [(build.gpu("a", 0, "H100"),)], (32,))
    stage = Pipeline(loads, None, Costs.of(model, 100, 100)).stages[0]
    experts = sum(model.layer_expert_bytes)
    dense = sum(model.layer_weight_bytes) - experts
    assert stage.linear.size_bytes == pytest.approx(dense)
    assert stage.experts.size_bytes * stage.touched(1) == pytest.approx(experts / 4)
    assert stage.experts.size_bytes * stage.touched(200) == pytest.approx(experts, rel=1e-6)
    assert loads[0].flops_per_token == pytest.approx(sum(model.layer_flops_per_token))


def test_a_window_caps_what_attention_reads(build) -> None:
    config = {**build.config, "architectures": ["MistralForCausalLM"], "sliding_window": 4096, "vocab_size": 32000}
    model = read_architecture(config)
    load = stage_loads(model, [(build.gpu("a", 0, "H100"),)], (32,))[0]
    assert load.kv_bytes(4096) == load.kv_bytes(100_000) == 2 * load.kv_bytes(2048)


def test_every_rank_keeps_an_mla_cache_whole_and_its_share_of_plain_heads(build) -> None:
    plain = read_architecture(build.config)
    shared = replace(plain, kv_shared_by_tensor=False)
    group = tuple(build.gpu("a", index, "H100") for index in range(2))
    one = stage_loads(plain, [group[:1]], (32,))[0].kv_bytes(1000)
    assert stage_loads(plain, [group], (32,))[0].kv_bytes(1000) == one / 2
    assert stage_loads(shared, [group], (32,))[0].kv_bytes(1000) == one


def test_where_nothing_is_measured_nothing_is_predicted(build) -> None:
    device = build.gpu("a", 0, "H100", bf16_flops_per_s=None)
    model = read_architecture(build.config)
    loads = stage_loads(model, [(device,)], (32,))
    assert predict(loads, None, Costs.of(model, 10, 10), demand(), 10_000, SIZES) is None


def test_more_load_never_makes_first_tokens_earlier_in_a_pipeline(build) -> None:
    groups = [(build.gpu("a", index, "H100"),) for index in range(2)]
    load = {"prompt_tokens": 30_000, "output_tokens": 500, "ttft_s": None, "tpot_s": None}
    rates = [None, 0.05, 0.1, 0.2, 0.3, 0.4]
    found = [times(build.config, groups, requests_per_s=rate, **load).ttft_s for rate in rates]
    assert found == sorted(found)


def test_the_chunks_of_a_long_prompt_follow_each_other_through_a_pipeline(build) -> None:
    devices = [build.gpu("a", index, "H100") for index in range(2)]
    long = {"prompt_tokens": 20 * SIZES.batched_tokens, "requests_per_s": None}
    one, two = (times(build.config, [(device,) for device in devices[:count]], **long).ttft_s for count in (1, 2))
    assert 0.5 < two / one < 0.7  # tokenising takes the same time with both


def test_predictions_that_nobody_calibrated_keep_away_from_a_target(build) -> None:
    loads = stage_loads(read_architecture(build.config), [(build.gpu("a", 0, "H100"),)], [32])
    calibrated = Efficiency(source="this engine")
    for efficiency, share in ((Efficiency(), 0.95), (calibrated, 1.0)):
        costs = Costs.of(read_architecture(build.config), 1155, 211, efficiency)
        most = predict(loads, None, costs, demand(requests_per_s=1e6), 300_000, SIZES)
        assert most is not None
        assert most.ttft_s == pytest.approx(share * 1.0, rel=0.01) or most.tpot_s == pytest.approx(
            share * 0.06, rel=0.01
        )


def test_a_target_that_a_lone_request_barely_meets_is_kept_as_it_is(build) -> None:
    device = build.gpu("a", 0, "H100")
    alone = times(build.config, [(device,)], requests_per_s=None, ttft_s=None, tpot_s=None)
    found = times(build.config, [(device,)], requests_per_s=1e-3, ttft_s=None, tpot_s=alone.tpot_s * 1.01)
    assert found.requests_per_s > 1e-3
