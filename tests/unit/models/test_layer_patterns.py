"""What each layer does, in the ways that families write it."""

from __future__ import annotations

from typing import Any

import pytest

from uellm.errors import BadInput
from uellm.models import Architecture, read_architecture, with_engine_facts
from uellm.models.weights import RecentCache

BASE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "torch_dtype": "bfloat16",
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def read(**fields: Any) -> Architecture:
    return read_architecture({**BASE, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "qwen3_5_text", **DELTA, "layer_types": ["linear_attention"] * 3 + ["full_attention"]},
        {"model_type": "qwen3_next", **DELTA, "full_attention_interval": 4},
        {"model_type": "granitemoehybrid", **MAMBA, "layers_block_type": ["mamba"] * 3 + ["attention"]},
        {"model_type": "granitemoehybrid", **MAMBA, "layer_types": ["linear_attention"] * 3 + ["full_attention"]},
        {"model_type": "nemotron_h", **MAMBA, "hybrid_override_pattern": "MMM*"},
        {"model_type": "bamba", **MAMBA, "attn_layer_indices": [3]},
        {"model_type": "jamba", "mamba_d_state": 16, "attn_layer_period": 4, "attn_layer_offset": 3},
        {"model_type": "lfm2", "conv_L_cache": 3, "full_attn_idxs": [3]},
        {"model_type": "minimax", "attn_type_list": [0, 0, 0, 1]},
        {"model_type": "something_new", **DELTA, "layer_types": ["linear_attention"] * 3 + ["full_attention"]},
    ],
    ids=lambda fields: fields["model_type"],
)
def test_the_last_of_four_layers_attends_and_the_others_keep_a_state(fields: dict) -> None:
    model = read(**fields)
    assert [kv > 0 for kv in model.layer_kv_bytes_per_token] == [False, False, False, True]
    assert [state > 0 for state in model.layer_state_bytes] == [True, True, True, False]


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        {"model_type": "cohere2", "sliding_window_pattern": 4},
        {"model_type": "exaone4", "sliding_window_pattern": "LLLG"},
        {"model_type": "afmoe", "global_attn_every_n_layers": 4},
        {"model_type": "mimo_v2", "hybrid_layer_pattern": [1, 1, 1, 0]},
    ],
)
def test_three_of_four_layers_slide(fields: dict) -> None:
    # Cohere's layers see as many tokens before their own.
    window = 129 if fields.get("model_type") == "cohere2" else 128
    model = read(**{"model_type": "llama", "sliding_window": 128, **fields})
    assert model.layer_window_tokens == (window,) * 3 + (None,)


@pytest.mark.parametrize(
    ("fields", "sparse"),
    [
        ({"first_k_dense_replace": 1}, [False, True, True, True]),
        ({"num_dense_layers": 2}, [False, False, True, True]),
        ({"moe_layer_freq": [0, 1, 0, 1]}, [False, True, False, True]),
        ({"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}, [False, True, True, True]),
        ({"moe_layers_enum": "1,3"}, [False, True, False, True]),
        ({"moe_layer_interval": 2, "moe_layer_start_index": 0, "moe_layer_end_index": 3}, [False, True, False, True]),
        ({"expert_layer_period": 2, "expert_layer_offset": 0}, [True, False, True, False]),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0]}, [False, True, True, True]),
        ({}, [True] * 4),
    ],
)
def test_experts_lie_where_the_config_puts_them(fields: dict, sparse: list[bool]) -> None:
    model = read(model_type="something_new", **EXPERTS, **fields)
    assert [experts > 0 for experts in model.layer_expert_bytes] == sparse


def test_experts_may_work_in_a_narrower_latent_space() -> None:
    pattern = {"model_type": "nemotron_h", **MAMBA, "hybrid_override_pattern": "MEM*"}
    pattern |= {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 0}
    wide, narrow = read(**pattern), read(**pattern, moe_latent_size=16)
    assert wide.layer_expert_bytes[1] == 2 * 8 * 2 * 64 * 32
    assert narrow.layer_expert_bytes[1] == 2 * 8 * 2 * 16 * 32


def test_an_indexer_adds_its_own_cache_to_latent_attention() -> None:
    latent = {"kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "q_lora_rank": 24}
    latent |= {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
    plain = read(model_type="deepseek_v3", **latent)
    indexed = read(model_type="deepseek_v32", **latent, index_topk=64, index_n_heads=4, index_head_dim=128)
    # 128 numbers in 8 bits, and a scale in 32.
    assert indexed.layer_kv_bytes_per_token[0] - plain.layer_kv_bytes_per_token[0] == 132
    assert (indexed.sparse_attention, plain.sparse_attention) == (True, False)


def test_a_list_of_kinds_has_an_entry_for_each_layer() -> None:
    with pytest.raises(BadInput, match=r"config\.layer_types: has 3 entries, but there are 4 layers"):
        read(model_type="llama", layer_types=["full_attention"] * 3)


def test_the_engines_caches_replace_the_formulas() -> None:
    model = read(model_type="llama")
    shapes = {
        "model.embed_tokens.weight": ["BF16", [512, 64]],
        "model.norm.weight": ["BF16", [64]],
        "lm_head.weight": ["BF16", [512, 64]],
        **{f"model.layers.{index}.mlp.gate_up_proj.weight": ["BF16", [192, 64]] for index in range(4)},
    }
    cache = {"bytesPerToken": 99, "stateBytes": 7, "windowTokens": 16}
    found = with_engine_facts(model, {"tensors": shapes, "caches": {"model.layers.2.self_attn.attn": cache}})
    assert found.source == "engine"
    assert found.layer_kv_bytes_per_token == (0, 0, 99, 0)
    assert found.layer_state_bytes == (0, 0, 7, 0)
    assert found.layer_window_tokens == (None, None, 16, None)
    assert found.layer_weight_bytes == (2 * 192 * 64,) * 4
    with pytest.raises(BadInput, match=r"4 layers, but the engine has a cache for model\.layers\.4"):
        with_engine_facts(model, {"tensors": shapes, "caches": {"model.layers.4.self_attn.attn": cache}})


def test_a_cache_of_fewer_tokens_is_kept_apart_from_the_one_of_the_longest_reach() -> None:
    model = read(model_type="llama")
    tensors = {
        "model.embed_tokens.weight": ["BF16", [512, 64]],
        **{f"model.layers.{index}.weight": ["BF16", [64]] for index in range(4)},
    }
    caches = {
        "model.layers.1.attn": {"bytesPerToken": 100, "stateBytes": 0, "windowTokens": None},
        "model.layers.1.conv_state": {"bytesPerToken": 900, "stateBytes": 0, "windowTokens": 4},
        "model.layers.2.attn": {"bytesPerToken": 100, "stateBytes": 0, "windowTokens": 64},
        "model.layers.2.conv_state": {"bytesPerToken": 900, "stateBytes": 0, "windowTokens": 4},
    }
    found = with_engine_facts(model, {"tensors": tensors, "caches": caches})
    assert found.layer_kv_bytes_per_token == (0, 100, 100, 0)
    assert found.layer_window_tokens == (None, None, 64, None)
    assert found.layer_recent == ((), (RecentCache(900, 4),), (RecentCache(900, 4),), ())


def test_the_layers_of_bert_are_no_encoder_of_images() -> None:
    bert = {"model_type": "bert", "architectures": ["BertModel"], "type_vocab_size": 2}
    tensors = {
        "model.embeddings.word_embeddings.weight": ["BF16", [512, 64]],
        **{f"model.encoder.layer.{index}.output.dense.weight": ["BF16", [64, 96]] for index in range(4)},
    }
    found = with_engine_facts(read(**bert), {"tensors": tensors, "caches": {}})
    assert (found.tower_bytes, found.layer_weight_bytes) == (0, (2 * 64 * 96,) * 4)


@pytest.mark.parametrize(
    ("kinds", "mamba", "attention"),
    [
        # Falcon-H1 counts its states on from the layers; Zamba2 does, too, and counts its blocks apart.
        (["attention"] * 4, "model.{}.mixer", "model.layers.{}.self_attn.attn"),
        (["mamba", "attention"] * 2, "{}.mixer", "model.attn.{}"),
    ],
)
def test_states_and_caches_that_the_engine_numbers_apart_are_those_of_the_layers_in_order(kinds, mamba, attention):
    model = read(model_type="granitemoehybrid", **MAMBA, layers_block_type=kinds)
    attending = [index for index, kind in enumerate(kinds) if kind == "attention"]
    caches = {
        mamba.format(4 + index): {"bytesPerToken": 0, "stateBytes": index + 1, "windowTokens": None}
        for index in range(4)
    }
    for index in range(len(attending)):
        caches[attention.format(index)] = {"bytesPerToken": 10 + index, "stateBytes": 0, "windowTokens": None}
    tensors = {
        "model.embed_tokens.weight": ["BF16", [512, 64]],
        **{f"model.layers.{index}.weight": ["BF16", [64]] for index in range(4)},
    }
    found = with_engine_facts(model, {"tensors": tensors, "caches": caches})
    assert found.layer_state_bytes == (1, 2, 3, 4)
    assert [each for each in found.layer_kv_bytes_per_token if each] == list(range(10, 10 + len(attending)))


def test_a_layer_with_a_state_is_the_same_under_its_old_and_its_new_name() -> None:
    old = read(model_type="granitemoehybrid", **MAMBA, layers_block_type=["mamba"] * 3 + ["attention"])
    new = read(model_type="granitemoehybrid", **MAMBA, layer_types=["linear_attention"] * 3 + ["full_attention"])
    assert (old.layer_weight_bytes, old.layer_state_bytes) == (new.layer_weight_bytes, new.layer_state_bytes)


def test_attention_with_an_indexer_is_full_attention_under_each_of_its_names() -> None:
    kinds = ["indexed_attention", "qwen_sparse_attention", "deepseek_sparse_attention", "full_attention"]
    assert len(set(read(model_type="llama", layer_types=kinds).layer_kv_bytes_per_token)) == 1


def test_attention_beside_a_state_that_is_not_known_keeps_its_cache() -> None:
    both = read(model_type="llama", layer_types=["hybrid", "hybrid_sliding"] * 2, sliding_window=16)
    assert both.layer_window_tokens == (None, 16, None, 16)


def test_kimis_linear_layers_have_the_width_of_their_own_heads() -> None:
    kinds = {"model_type": "kimi_linear", "layer_types": ["linear_attention"] * 4, "head_dim": 16, "kv_lora_rank": 8}
    kinds |= {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    flat = read(**kinds, linear_num_heads=2, linear_head_dim=48)
    section = read(**kinds, linear_attn_config={"num_heads": 2, "head_dim": 48, "full_attn_layers": []})
    assert flat.layer_weight_bytes == section.layer_weight_bytes
    assert flat.layer_state_bytes == section.layer_state_bytes


def test_ernie_has_as_many_experts_for_images_which_text_does_not_use() -> None:
    fields = {"model_type": "ernie4_5_vl_moe_text", "moe_k": 2, "moe_layer_interval": 1}
    one = read(**fields, moe_num_experts=8, moe_intermediate_size=32, moe_layer_start_index=1)
    two = read(**fields, moe_num_experts=[8, 8], moe_intermediate_size=[32, 16], moe_layer_start_index=[1, 1])
    assert (two.layer_expert_bytes[0], two.layer_flops_per_token) == (0, one.layer_flops_per_token)
    assert two.layer_expert_bytes[1] - one.layer_expert_bytes[1] == 8 * 3 * 64 * 16 * 2
    assert two.experts == 8


@pytest.mark.parametrize(
    ("given", "reach"), [({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 0}, None)]
)
def test_a_window_that_is_switched_off_is_not_the_familys_default(given: dict, reach: int | None) -> None:
    text = {**BASE, "model_type": "mistral", **given}
    model = read_architecture({"architectures": ["LlavaForConditionalGeneration"], "text_config": text})
    assert set(model.layer_window_tokens) == {reach}
    assert any("sliding_window" in note for note in model.notes) == (reach is not None)


DELTA_NET = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
DELTA_NET |= {"linear_value_head_dim": 16}


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_text", "olmo_hybrid"])
def test_every_fourth_layer_has_softmax_attention_where_nothing_says_which(family: str) -> None:
    model = read(model_type=family, **DELTA_NET)
    assert [bool(kv) for kv in model.layer_kv_bytes_per_token] == [False, False, False, True]


def test_linear_attention_of_a_family_that_is_not_known_must_say_which_layers_have_it() -> None:
    with pytest.raises(BadInput, match=r"config\.layer_types: is missing: which layers have softmax attention"):
        read(model_type="llama", **DELTA_NET)


@pytest.mark.parametrize(
    ("family", "turn"), [("olmo3", 3), ("cohere2", 3), ("cwm", 0), ("granite_swa", 0), ("muse_glimmer_text", 3)]
)
def test_one_of_four_layers_attends_to_everything_where_nothing_says_which(family: str, turn: int) -> None:
    model = read(model_type=family, sliding_window=16)
    assert [window is None for window in model.layer_window_tokens] == [index == turn for index in range(4)]


def test_granites_layers_without_experts_have_the_width_of_the_shared_one() -> None:
    kinds = {"layer_types": ["full_attention"] * 4, "num_local_experts": 0}
    wide = read(model_type="granitemoehybrid", **kinds, shared_intermediate_size=200)
    assert wide.layer_weight_bytes == read(model_type="llama", intermediate_size=200).layer_weight_bytes


def test_jambas_layers_with_one_expert_have_a_plain_mlp() -> None:
    period = {"expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
    model = read(model_type="jamba", **period, mamba_d_state=16, num_experts=1, num_experts_per_tok=2)
    assert (model.experts, set(model.layer_expert_bytes)) == (0, {0})
