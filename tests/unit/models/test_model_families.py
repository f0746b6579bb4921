"""What sets one family apart from another: which layers have experts, how far they look back, what a token adds."""

from __future__ import annotations

import pytest

from helpers.models import LATENT_ATTENTION
from uellm.errors import BadInput
from uellm.models import Architecture, read_architecture

SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
MOE = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {**SMALL, **LATENT_ATTENTION}


def read(family: str, **fields: object) -> Architecture:
    return read_architecture({**SMALL, **fields, "uellm_family": family})


def sparse(model: Architecture) -> list[int]:
    return [index for index, experts in enumerate(model.layer_expert_bytes) if experts]


def test_deepseeks_first_layers_are_dense_and_weigh_less() -> None:
    model = read("deepseek_v3", **LATENT, first_k_dense_replace=3)
    assert sparse(model) == [3, 4, 5, 6, 7]
    assert len(set(model.layer_weight_bytes[:3])) == len(set(model.layer_weight_bytes[3:])) == 1
    assert model.layer_weight_bytes[0] != model.layer_weight_bytes[3]


def test_deepseek_may_have_experts_on_every_second_layer_alone() -> None:
    assert sparse(read("deepseek_v2", **LATENT, first_k_dense_replace=1, moe_layer_freq=2)) == [2, 4, 6]


def test_latent_attention_keeps_one_vector_a_token_that_tensor_parallelism_cannot_divide() -> None:
    model = read("deepseek_v2", **LATENT)
    assert model.layer_kv_bytes_per_token == ((40 + 8) * 2,) * 8
    assert not model.kv_shared_by_tensor
    assert model.layer_attention_flops_per_token[0] == 2 * 4 * (16 + 8 + 24)


def test_deepseek_without_a_query_rank_projects_queries_at_once() -> None:
    straight = read("deepseek_v2", **{**LATENT, "q_lora_rank": None})
    ranked = read("deepseek_v2", **LATENT)
    queries = 4 * (16 + 8)
    more = 64 * queries - (64 * 28 + 28 * queries + 28)
    assert (straight.layer_weight_bytes[0] - ranked.layer_weight_bytes[0]) == 2 * more


def test_layers_of_multi_token_prediction_are_not_counted_and_noted() -> None:
    model = read("deepseek_v3", **LATENT, num_nextn_predict_layers=1)
    assert model.layers == 8
    assert any("multi-token prediction" in note for note in model.notes)


def test_qwen_moe_has_experts_on_every_step_save_the_layers_named() -> None:
    model = read("qwen3_moe", **MOE, decoder_sparse_step=2, mlp_only_layers=[3])
    assert sparse(model) == [1, 5, 7]


def test_qwen2_moe_has_a_shared_expert_that_every_token_uses() -> None:
    model = read("qwen2_moe", **MOE, shared_expert_intermediate_size=80)
    attention = 64 * (64 + 2 * 32) + 64 * 64
    used = attention + 16 * 64 + 2 * 3 * 64 * 32 + 3 * 64 * 80 + 64
    assert model.layer_flops_per_token[0] == 2 * used
    assert model.layer_expert_bytes[0] == 2 * 16 * 3 * 64 * 32


def test_numbers_of_experts_may_be_listed_by_layer() -> None:
    listed = read(
        "hunyuan_v1_moe", **MOE | {"moe_topk": [2] * 8, "num_experts_per_tok": None, "num_shared_expert": [1] * 8}
    )
    plain = read("hunyuan_v1_moe", **MOE, num_shared_expert=1)
    assert (listed.experts_per_token, listed.layer_weight_bytes) == (2, plain.layer_weight_bytes)


def test_molmo_counts_gate_and_up_as_one_width_and_rows_as_embedding_size() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 512, "embedding_size": 512, "qkv_bias": True}
    config = {**SMALL, **sizes, "architectures": ["MolmoForCausalLM"], "model_type": "molmo"}
    molmo, qwen = read_architecture(config), read("qwen2", **(sizes | {"intermediate_size": 96}))
    assert molmo.layer_weight_bytes == qwen.layer_weight_bytes
    assert molmo.token_embedding_bytes == molmo.lm_head_bytes == 2 * 512 * 64
    assert molmo.embedding_bytes == 2 * (512 + 128) * 64
    assert not molmo.exact
    assert any("the encoders of MolmoForCausalLM are not counted" in note for note in molmo.notes)


def test_mixtral_counts_the_chosen_experts_alone_as_active() -> None:
    model = read("mixtral", num_local_experts=8, num_experts_per_tok=2)
    assert model.parameters - model.active_parameters == 8 * 6 * 3 * 64 * 96


def test_a_step_reads_the_experts_that_its_tokens_are_expected_to_choose() -> None:
    model = read("mixtral", num_local_experts=8, num_experts_per_tok=2)
    dense, experts = model.layer_weight_bytes[0] - model.layer_expert_bytes[0], model.layer_expert_bytes[0]
    assert model.layer_read_bytes(0, 1) == pytest.approx(dense + experts * 2 / 8)
    assert model.layer_read_bytes(0, 2) == pytest.approx(dense + experts * (1 - 0.75**2))
    assert model.layer_read_bytes(0, 4096) == pytest.approx(dense + experts)
    assert read("llama").layer_read_bytes(0, 1) == read("llama").layer_weight_bytes[0]


def test_llama4_interleaves_experts_and_attends_in_chunks_save_every_fourth_layer() -> None:
    fields = {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 160, "head_dim": 16}
    model = read("llama4_text", **fields, interleave_moe_layer_step=2, attention_chunk_size=128)
    assert sparse(model) == [1, 3, 5, 7]
    assert model.layer_window_tokens == (128, 128, 128, None) * 2
    assert model.intermediate_size == 2 * 96  # the chosen expert and the shared one
    listed = read("llama4_text", **fields, moe_layers=[0], no_rope_layers=[0] + [1] * 7, attention_chunk_size=128)
    assert sparse(listed) == [0]
    assert listed.layer_window_tokens == (None,) + (128,) * 7


def test_gpt_oss_slides_on_every_second_layer_beginning_with_the_first() -> None:
    model = read("gpt_oss", head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=128)
    assert model.layer_window_tokens == (128, None) * 4
    assert (model.experts, model.experts_per_token) == (4, 2)


def test_gemma_alternates_windows_and_ties_its_embeddings() -> None:
    second = read("gemma2", head_dim=32, sliding_window=4096)
    assert second.layer_window_tokens == (4096, None) * 4
    third = read("gemma3_text", head_dim=32, sliding_window=512)
    assert third.layer_window_tokens == (512,) * 5 + (None,) + (512,) * 2
    assert second.tied
    assert third.tied
    assert third.layer_kv_bytes_per_token == (2 * 2 * 32 * 2,) * 8


def test_layer_types_win_over_a_familys_pattern() -> None:
    kinds = ["full_attention"] * 7 + ["sliding_attention"]
    assert read("gemma3_text", head_dim=32, sliding_window=512, layer_types=kinds).layer_window_tokens[7] == 512
    assert read("qwen3", head_dim=32, layer_types=["full_attention"] * 8).layer_window_tokens == (None,) * 8


def test_falcon_shares_one_kv_head_unless_the_new_decoder_groups_them() -> None:
    assert read("falcon").kv_heads == 1
    assert read("falcon", new_decoder_architecture=True, num_kv_heads=2).kv_heads == 2
    assert read("falcon", multi_query=False).kv_heads == 4


def test_chatglm_is_read_by_its_own_names() -> None:
    own = {"num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4, "kv_channels": 16}
    own |= {"multi_query_attention": True, "multi_query_group_num": 2, "padded_vocab_size": 512, "seq_length": 8192}
    model = read_architecture({**own, "architectures": ["ChatGLMModel"], "model_type": "chatglm"})
    assert (model.layers, model.kv_heads, model.vocab_size, model.max_position_embeddings) == (3, 2, 512, 8192)
    biased = read_architecture({**own, "architectures": ["ChatGLMModel"], "add_qkv_bias": True})
    assert biased.layer_weight_bytes[0] - model.layer_weight_bytes[0] == 2 * (4 + 2 * 2) * 16


def test_tensor_parallelism_must_divide_the_widths_that_the_model_names() -> None:
    assert read("llama").tensor_widths == (("intermediate_size", 96),)
    assert dict(read("deepseek_v2", **LATENT).tensor_widths)["moe_intermediate_size"] == 48


VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "patch_size": 14,
    "image_size": 56,
}


def test_a_known_tower_is_counted_and_any_other_is_noted() -> None:
    inner = {**SMALL, "model_type": "llama"}
    wrapper = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": inner}
    known = read_architecture({**wrapper, "vision_config": VISION})
    text = read_architecture(wrapper)
    assert known.tower_bytes > 0
    assert known.weight_bytes - text.weight_bytes == known.tower_bytes
    assert known.layer_weight_bytes == text.layer_weight_bytes
    other = read_architecture({**wrapper, "vision_config": {"model_type": "eva"}})
    assert other.tower_bytes == 0
    assert any("vision_config are not counted" in note for note in other.notes)


def test_a_tower_that_leaves_out_sizes_has_those_of_its_own_class() -> None:
    inner = {**SMALL, "model_type": "llama"}
    short = read_architecture({"text_config": inner, "vision_config": {"model_type": "siglip_vision_model"}})
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 16}
    whole = {"model_type": "siglip_vision_model", **sizes, "image_size": 224}
    assert short.tower_bytes == read_architecture({"text_config": inner, "vision_config": whole}).tower_bytes


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Ovis", {"model_type": "ovis", "llm_config": {**SMALL, "model_type": "qwen2"}}),
        (
            "Gemma3ForConditionalGeneration",
            {"model_type": "gemma3", "text_config": SMALL | {"model_type": "gemma3_text"}},
        ),
    ],
)
def test_encoders_of_which_the_config_says_nothing_are_noted(name: str, fields: dict) -> None:
    model = read_architecture({**SMALL, "architectures": [name], **fields})
    assert not model.exact
    assert any(f"the encoders of {name} are not counted" in note for note in model.notes)


def test_encoders_that_the_engine_builds_without_a_config_are_counted() -> None:
    images = {"architectures": ["Phi3VForCausalLM"], "model_type": "phi3_v", "img_processor": {"layer_idx": -2}}
    both = {"architectures": ["Phi4MMForCausalLM"], "model_type": "phi4mm"}
    for config, least, most in ((images, 285e6, 300e6), (both, 850e6, 950e6)):
        model = read_architecture({**SMALL, **config})
        assert least < model.tower_bytes / 2 < most
        assert not any("not counted" in note for note in model.notes)


def test_an_unknown_tower_with_width_and_depth_is_reckoned_and_said() -> None:
    vision = {"model_type": "eva", "width": 64, "depth": 2}
    model = read_architecture({"text_config": {**SMALL, "model_type": "llama"}, "vision_config": vision})
    assert model.tower_bytes > 0
    assert any("reckoned as those of a plain transformer" in note for note in model.notes)


def test_tied_embeddings_may_be_set_only_at_the_wrappers_level() -> None:
    inner = {**SMALL, "model_type": "qwen2"}
    assert read_architecture({"text_config": inner, "tie_word_embeddings": True}).tied
    assert not read_architecture({"text_config": {**inner, "tie_word_embeddings": False}}).tied
    assert not read_architecture(
        {"text_config": {**inner, "tie_word_embeddings": True}, "tie_word_embeddings": False}
    ).tied


@pytest.mark.parametrize(
    ("family", "fields", "field", "words"),
    [
        ("gemma3_text", {"layer_types": ["full_attention"] * 7}, "layer_types", "7 entries, but there are 8 layers"),
        ("gemma3_text", {"layer_types": ["spiral"] * 8}, "layer_types", "'spiral' is not known here"),
        ("gemma3_text", {"layer_types": "full"}, "layer_types", "must be a list"),
        ("gemma2", {"sliding_window": -5}, "sliding_window", "positive"),
        ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 4}, "num_experts_per_tok", "more than the 2"),
        ("qwen3_moe", {**MOE, "mlp_only_layers": [8]}, "mlp_only_layers", "layer numbers from 0 to 7"),
        ("qwen3_moe", {**MOE, "decoder_sparse_step": 0}, "decoder_sparse_step", "positive"),
        ("deepseek", {**LATENT, "qk_nope_head_dim": None}, "qk_nope_head_dim", "is missing"),
        ("deepseek_v3", {**LATENT, "first_k_dense_replace": -1}, "first_k_dense_replace", "0 or more"),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 3}, "num_kv_heads", "does not divide"),
        ("falcon", {"num_attention_heads": 5}, "num_attention_heads", "does not divide hidden_size"),
        (
            "falcon",
            {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 3},
            "num_ln_in_parallel_attn",
            "1 or 2",
        ),
        ("gpt2", {"n_embd": 64, "n_head": 5, "n_positions": 64}, "n_head", "does not divide"),
        ("chatglm", {"ffn_hidden_size": 96, "multi_query_attention": True}, "multi_query_group_num", "is missing"),
        (
            "chatglm",
            {"ffn_hidden_size": 96, "multi_query_attention": True, "multi_query_group_num": 3},
            "multi_query_group_num",
            "does not divide",
        ),
        (
            "llama4_text",
            {"num_local_experts": 4, "num_experts_per_tok": 1, "no_rope_layers": [2] * 8},
            "no_rope_layers",
            "0 (no positions) or 1",
        ),
    ],
)
def test_an_error_in_a_familys_fields_is_one_line(family: str, fields: dict, field: str, words: str) -> None:
    with pytest.raises(BadInput) as raised:
        read(family, **fields)
    assert raised.value.field == f"config.{field}"
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_tower_that_is_no_object_is_refused() -> None:
    with pytest.raises(BadInput, match=r"config\.vision_config: must be an object"):
        read_architecture({"text_config": {**SMALL, "model_type": "llama"}, "vision_config": "clip"})
