"""Byte budgets: the size of each kind, their sum, and the engine's flag."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.sizes import GIB
from uellm.errors import PlanError
from uellm.models import Architecture, read_architecture
from uellm.models.weights import RecentCache
from uellm.planner import constants as c
from uellm.planner import plan
from uellm.planner.memory.footprint import footprint
from uellm.planner.memory.kv_cache import kv_cache
from uellm.planner.request import EngineRequest, Overrides, SloClass, Workload
from uellm.planner.shape import Shape, Steps
from uellm.planner.vllm.cache_dtype import with_cache
from uellm.planner.vllm.flags import UserArgs

STEPS = Steps(2048, 256)
PUBLISHED = json.loads((Path(__file__).parents[2] / "data" / "published-facts.json").read_text())["models"]


def test_the_kinds_and_what_is_free_add_up_to_the_device(build) -> None:
    made = plan(build.request(build.node("a", "T4 L4"), workload=build.workload, classes=build.chat))
    sizes = {"a-gpu-0": int(15.0 * GIB), "a-gpu-1": int(22.5 * GIB)}
    for stage in made.stages:
        assert stage.memory.required + stage.memory.free == sizes[stage.devices[0]]


def test_no_stage_uses_more_than_vllms_share_of_the_device(build) -> None:
    made = plan(build.request(build.node("a", "T4 L4"), workload=build.workload, classes=build.chat))
    for stage, memory in zip(made.stages, (15.0, 22.5), strict=True):
        assert stage.memory.required <= 0.92 * memory * GIB or stage.devices != ("a-gpu-0",)
        assert stage.memory.free >= 0.08 * 15.0 * GIB - 1


def test_the_weights_of_all_stages_are_the_models(build) -> None:
    request = build.request(build.node("a", "L4 L4 L4"), overrides=Overrides(pipeline=3))
    made = plan(request)
    assert sum(stage.memory.weights for stage in made.stages) == request.architecture.weight_bytes


def test_a_tied_head_is_stored_twice_with_several_stages(build) -> None:
    config = {**build.config, "tie_word_embeddings": True}
    one = plan(build.request(build.node("a", "H100"), config=config))
    two = plan(build.request(build.node("a", "H100 H100"), config=config, overrides=Overrides(pipeline=2)))
    model = read_architecture(config)
    assert one.stages[0].memory.weights == model.weight_bytes
    assert sum(stage.memory.weights for stage in two.stages) == model.weight_bytes + model.embedding_bytes


def test_tensor_parallelism_halves_weights_and_kv_of_each_gpu(build) -> None:
    model = read_architecture(build.config)
    one = footprint(model, Shape(1, 1), STEPS, 1024, UserArgs(()))
    two = footprint(model, Shape(2, 1), STEPS, 1024, UserArgs(()))
    assert two.layer_bytes[0] * 2 == one.layer_bytes[0]
    assert two.layer_kv_bytes[0] * 2 == one.layer_kv_bytes[0]
    assert two.context_bytes > one.context_bytes


def test_kv_heads_are_not_divided_below_one(build) -> None:
    model = read_architecture(build.config)  # 8 KV heads
    sixteen = footprint(model, Shape(16, 1), STEPS, 1024, UserArgs(()))
    assert sixteen.layer_kv_bytes_per_token[0] == model.layer_kv_bytes_per_token[0] // 8


def test_an_fp8_kv_cache_takes_half(build) -> None:
    model = read_architecture(build.config)
    half = footprint(model, Shape(1, 1), STEPS, 1024, UserArgs(("--kv-cache-dtype", "fp8_e4m3")))
    assert half.layer_kv_bytes_per_token[0] * 2 == model.layer_kv_bytes_per_token[0]


def test_eager_engines_have_no_graphs(build) -> None:
    model = read_architecture(build.config)
    assert footprint(model, Shape(1, 1), STEPS, 1024, UserArgs(("--enforce-eager",))).graph_bytes == 0


def test_the_fixed_overhead_leaves_room_on_a_gpu_of_one_gib() -> None:
    assert c.CONTEXT_BYTES + 8 * c.CUDA_GRAPH_BYTES_PER_LAYER <= 300 << 20


def test_a_users_utilization_decides_the_margin(build) -> None:
    request = build.request(build.node("a", "L4"))
    more = replace(request, engine=EngineRequest(args=("--gpu-memory-utilization", "0.95")))
    assert plan(more).kv_cache_bytes > plan(request).kv_cache_bytes
    assert "--gpu-memory-utilization 0.95 is set" in " ".join(plan(more).assumptions)


def test_the_kv_cache_flag_lets_no_stage_allocate_more_than_it_has() -> None:
    # Stage 0: 10 layers with room for 100; stage 1: 2 layers with room for 30.
    told = kv_cache([100_000, 30_000], [10, 2])
    assert told.tokens == 9984  # whole blocks of min(10000, 15000)
    assert told.flag_bytes == 9984 * 10


def test_the_kv_cache_holds_at_least_one_longest_request_and_a_spare_block(build) -> None:
    made = plan(build.request(build.node("a", "L4"), max_model_len=1000))
    assert made.kv_cache_tokens_required == 1024 + 128
    assert made.predicted.kv_cache_tokens >= made.kv_cache_tokens_required


def test_littles_law_sets_the_kv_cache_required_at_the_pace_of_the_targets(build) -> None:
    node = build.node("a", [build.unmeasured("a", 0, "H100")])
    made = plan(build.request(node, workload=build.workload, classes=build.chat))
    # 4/s x (0.5 s + 256 x 50 ms) = 53.2 in flight, so 54 of 768 tokens each: 41,472, in blocks of 128 with one to spare
    assert made.kv_cache_tokens_required == (324 + 1) * 128


def test_where_speeds_are_measured_the_pace_is_the_predicted_one(build) -> None:
    load = replace(build.workload, requests_per_s=8)
    made = plan(build.request(build.node("a", "H100"), workload=load, classes=build.chat, max_model_len=2048))
    in_flight = 8 * (made.predicted.ttft_ms + 256 * made.predicted.tpot_ms) / 1e3
    assert made.kv_cache_tokens_required >= in_flight * 768
    assert made.kv_cache_tokens_required <= (in_flight + 3) * 768
    assert "at the pace predicted" in " ".join(made.assumptions)


def test_a_class_with_an_end_to_end_target_alone_sets_a_pace_too(build) -> None:
    batch = replace(build.chat[0], ttft_s=None, tpot_s=None, e2e_s=25.6)
    node = build.node("a", [build.unmeasured("a", 0, "H100")])
    with_batch = plan(build.request(node, workload=build.workload, classes=(batch,)))
    assert "keep 106.4 in flight" in " ".join(with_batch.assumptions)  # 4 x (1 + 25.6) with 1 s TTFT assumed


def test_requests_longer_than_the_model_are_cut(build) -> None:
    load = Workload(requests_per_s=1, prompt_tokens_mean=5000, output_tokens_mean=5000)
    made = plan(build.request(build.node("a", "H100"), workload=load, max_model_len=4096))
    assert "2048 and 2048 tokens" in " ".join(made.assumptions)


def test_simulated_gpus_get_only_the_required_kv_cache(build) -> None:
    real = plan(build.request(build.node("a", "H100"), workload=build.workload, classes=build.chat))
    played = plan(
        build.request(build.node("a", "H100", source="Simulated"), workload=build.workload, classes=build.chat)
    )
    assert real.kv_cache_bytes > 40 * GIB
    # 41,088 tokens would be 5 GiB of this machine's memory, so the cache is limited to one longest request.
    assert played.kv_cache_bytes == (8192 + 128) * 32 * 4096
    assert "limited to 8320 tokens" in " ".join(played.assumptions)


def test_chunks_follow_from_the_tightest_tpot(build) -> None:
    strict = plan(build.request(build.node("a", "H100"), classes=(replace(build.chat[0], tpot_s=0.03),)))
    loose = plan(build.request(build.node("a", "H100"), classes=build.chat))
    free = plan(build.request(build.node("a", "H100")))
    assert strict.max_num_batched_tokens < loose.max_num_batched_tokens < free.max_num_batched_tokens == 8192
    assert "of the tightest TPOT of 30 ms" in " ".join(strict.assumptions)


def test_chunks_follow_from_end_to_end_targets_and_the_length_of_answers(build) -> None:
    def tokens(e2e_s: float, output_tokens: int) -> int:
        load = Workload(prompt_tokens_mean=1155, output_tokens_mean=output_tokens)
        made = plan(build.request(build.node("a", "H100"), classes=(SloClass("task", e2e_s=e2e_s),), workload=load))
        return made.max_num_batched_tokens

    assert tokens(10.0, 400) < tokens(10.0, 100)
    assert tokens(10.0, 200) < tokens(60.0, 200)


@pytest.mark.parametrize(("product", "tokens", "sequences"), [("L4", 2048, 256), ("H100", 8192, 1024)])
def test_without_targets_steps_are_vllms_defaults(build, product: str, tokens: int, sequences: int) -> None:
    made = plan(build.request(build.node("a", product)))
    assert (made.max_num_batched_tokens, made.max_num_seqs) == (tokens, sequences)


def test_a_users_step_sizes_take_precedence(build) -> None:
    engine = EngineRequest(args=("--max-num-batched-tokens=4k", "--max_num_seqs", "32"))
    made = plan(build.request(build.node("a", "H100"), engine=engine, classes=build.chat))
    assert (made.max_num_batched_tokens, made.max_num_seqs) == (4000, 32)
    assert "4000: set in engine.args" in " ".join(made.assumptions)
    assert "--max-num-seqs 32: set in engine.args" in " ".join(made.assumptions)


def test_max_num_seqs_is_at_most_what_decodes_within_the_tightest_tpot(build) -> None:
    strict = plan(build.request(build.node("a", "H100"), classes=(replace(build.chat[0], tpot_s=0.012),)))
    assert strict.max_num_seqs < 256
    assert "as many as decode together within the tightest TPOT" in " ".join(strict.assumptions)


def test_larger_steps_leave_less_kv_cache(build) -> None:
    small, large = (
        plan(build.request(build.node("a", "H100"), engine=EngineRequest(args=("--max-num-batched-tokens", tokens))))
        for tokens in ("2048", "65536")
    )
    assert large.stages[0].memory.activations > small.stages[0].memory.activations
    assert large.predicted.kv_cache_tokens < small.predicted.kv_cache_tokens


def test_a_users_kv_cache_is_kept_where_it_fits(build) -> None:
    made = plan(build.request(build.node("a", "L4"), engine=EngineRequest(args=("--kv-cache-memory-bytes", "2G"))))
    assert made.kv_cache_bytes == 2 * GIB
    assert made.predicted.kv_cache_tokens == 2 * GIB // (32 * 4096)
    assert "--kv-cache-memory-bytes 2G is set in engine.args and kept" in made.assumptions


def test_what_a_stage_requires_is_enough_for_another_device_in_its_place_and_less_is_not(build) -> None:
    overrides = Overrides(layers=(18, 14))
    made = plan(build.request(build.node("a", "L4 L4"), overrides=overrides))
    least = [build.gpu("b", i, "L4", memory_bytes=stage.memory_bytes) for i, stage in enumerate(made.stages)]
    assert plan(build.request(build.node("b", least), overrides=overrides)).layers == (18, 14)
    for index in (0, 1):
        less = list(least)
        less[index] = replace(less[index], memory_bytes=less[index].memory_bytes - 1000)
        with pytest.raises(PlanError, match="needs"):
            plan(build.request(build.node("b", less), overrides=overrides))


def test_the_state_of_a_sequence_lies_in_the_cache_spread_over_its_request() -> None:
    config = {
        "model_type": "qwen3_next",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "full_attention_interval": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "torch_dtype": "bfloat16",
    }
    model = read_architecture(config)
    sizes = footprint(model, Shape(2, 1), STEPS, 10_000, UserArgs(()), request_tokens=100)
    # Each GPU has half of the state of 10 000 / 100 sequences, rounded up to a whole byte a token.
    for state, kv in zip(model.layer_state_bytes[:3], sizes.layer_kv_bytes[:3], strict=True):
        assert 0 <= kv - 100 * state / 2 <= 10_000


def test_a_checkpoint_with_an_fp8_cache_needs_half_and_the_flag_may_ask_for_16_bits_again(build) -> None:
    section = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    model = read_architecture({**build.config, "quantization_config": section})
    plain = read_architecture(build.config)
    wide = UserArgs(("--kv-cache-dtype", "bfloat16"))
    assert 2 * kv_of(model, UserArgs(())) == kv_of(plain, UserArgs(())) == kv_of(model, wide)


@pytest.mark.parametrize(
    ("name", "fields", "fp8"),
    [
        ("DeepSeek-R1", {"index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128}, 656 + 132),
        ("DeepSeek-V4-Flash", {}, None),  # packed in FP8 by itself
    ],
)
def test_an_fp8_cache_leaves_the_bytes_of_indexers_and_of_packed_formats(name, fields, fp8) -> None:
    config = next(entry["config"] for entry in PUBLISHED if entry["name"] == name)
    model = read_architecture({**config, **fields})
    found = with_cache(model, UserArgs(("--kv-cache-dtype", "fp8")))
    assert found.kv_bytes_per_token == (model.layers * fp8 if fp8 else model.kv_bytes_per_token)


def kv_of(model: Architecture, user: UserArgs) -> int:
    return sum(footprint(model, Shape(1, 1), STEPS, 1000, user).layer_kv_bytes)


@pytest.mark.parametrize("entry", PUBLISHED, ids=[entry["name"] for entry in PUBLISHED])
def test_padding_adds_little_to_the_weights_of_any_published_model(entry):
    """The kernels for MXFP4 pad the two sides of an expert's matrices, and of nothing else."""
    model = read_architecture(entry["config"])
    sizes = footprint(model, Shape(1, 1), Steps(2048, 256), 0, UserArgs(()))
    assert sum(sizes.layer_bytes) <= 1.25 * sum(model.layer_weight_bytes)


def test_experts_that_the_engine_makes_fp8_by_blocks_fill_whole_blocks_on_each_gpu() -> None:
    config = next(
        {name: value for name, value in entry["config"].items() if name != "quantization_config"}
        for entry in PUBLISHED
        if entry["config"].get("moe_intermediate_size") == 768
    )
    model = read_architecture(config, quantization="fp8_per_block")

    def beyond_its_share(tensor: int) -> float:
        found = footprint(model, Shape(tensor, 1), STEPS, 0, UserArgs(())).layer_bytes[0] * tensor
        return (found - model.layer_weight_bytes[0]) / model.layer_expert_bytes[0]

    # Of 768 columns each GPU has 768, 384 or 192, and 192 are stored as 256.
    assert [beyond_its_share(tensor) for tensor in (1, 2, 4)] == pytest.approx([0, 0, 1 / 3], abs=1e-3)


def test_a_cache_of_the_last_tokens_takes_its_window_and_the_chunk_in_progress(build) -> None:
    model = read_architecture(build.config)
    cache = RecentCache(1000, 52)
    beside = replace(model, layer_recent=((cache,), *((),) * (model.layers - 1)))

    def more(tensor: int, request_tokens: int | None) -> list[int]:
        sizes = [
            footprint(each, Shape(tensor, 1), STEPS, 4096, UserArgs(()), request_tokens=request_tokens)
            for each in (model, beside)
        ]
        pairs = zip(*(found.layer_kv_bytes_per_token for found in sizes), strict=True)
        return [with_it - without for without, with_it in pairs]

    assert more(1, 21_000) == [100, *(0,) * (model.layers - 1)]  # (52 + 2,048) of 21,000 tokens
    assert more(2, 21_000)[0] == 50
    assert more(1, 100)[0] == more(1, None)[0] == 1000
