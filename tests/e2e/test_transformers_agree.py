"""Bytes by layer against the models that transformers builds from the same configuration on the meta device.

It is among the slow tests because importing torch and transformers takes seconds; each model takes milliseconds.
transformers does not include ChatGLM: its published counts are in tests/data/published-models.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.models import LATENT_ATTENTION
from uellm.models import Architecture, read_architecture, read_directory

SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
QWEN_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT = {
    "num_key_value_heads": 4,
    **LATENT_ATTENTION,
    "first_k_dense_replace": 2,
    "n_group": 2,
    "topk_group": 1,
}
PLAIN = {key: value for key, value in SMALL.items() if key != "head_dim"}
GPT2 = {"vocab_size": 512, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
FAMILIES = [
    ("llama", PLAIN),
    ("llama", {**SMALL, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama4_text", {**SMALL, "intermediate_size_mlp": 80, "num_local_experts": 4, "interleave_moe_layer_step": 2}),
    ("llama4_text", {**SMALL, "intermediate_size_mlp": 80, "num_local_experts": 4, "moe_layers": [1, 5]}),
    ("mistral", {**SMALL, "sliding_window": None}),
    ("ministral", {**SMALL, "sliding_window": 32}),
    ("mixtral", {**SMALL, "num_local_experts": 4}),
    ("qwen2", PLAIN),
    ("qwen2", {**PLAIN, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 5}),
    ("qwen2_moe", {**PLAIN, **QWEN_MOE, "shared_expert_intermediate_size": 112, "decoder_sparse_step": 2}),
    ("qwen2_moe", {**PLAIN, **QWEN_MOE, "shared_expert_intermediate_size": 112, "mlp_only_layers": [0, 3]}),
    ("qwen3", {**SMALL, "attention_bias": True}),
    ("qwen3_moe", {**SMALL, **QWEN_MOE, "mlp_only_layers": [2]}),
    ("gemma", SMALL),
    ("gemma2", {**SMALL, "sliding_window": 32}),
    ("gemma3_text", {**SMALL, "sliding_window": 32}),
    ("phi3", PLAIN),
    ("phimoe", {**PLAIN, "num_local_experts": 4, "attention_bias": True, "lm_head_bias": True}),
    ("deepseek_v2", {**PLAIN, **LATENT}),
    ("deepseek_v2", {**PLAIN, **LATENT, "q_lora_rank": None, "attention_bias": True}),
    ("deepseek_v3", {**PLAIN, **LATENT}),
    ("gpt_oss", {**SMALL, "num_local_experts": 4, "sliding_window": 32}),
    ("falcon", PLAIN),
    ("falcon", {**PLAIN, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {**PLAIN, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", {**PLAIN, "multi_query": False, "alibi": True, "bias": True, "parallel_attn": False}),
    ("falcon", {**PLAIN, "ffn_hidden_size": 80, "tie_word_embeddings": False}),
    ("opt", {**PLAIN, "ffn_dim": 96}),
    ("opt", {**PLAIN, "ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    ("gpt2", GPT2),
    ("gpt2", {**GPT2, "n_inner": 80}),
]
VIT = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 14,
    "image_size": 56,
}
LLAMA4_VIT = {**VIT, "intermediate_size": 192, "vision_output_dim": 72}
LLAMA4_VIT |= {"projector_input_dim": 40, "projector_output_dim": 72, "pixel_shuffle_ratio": 0.5}
QWEN_VIT = {"depth": 3, "num_heads": 4, "patch_size": 14}
WIDE_QWEN_VIT = {**QWEN_VIT, "hidden_size": 48, "intermediate_size": 80, "out_hidden_size": 64}
DEEP = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
WRAPPERS = [
    ("llava", "llama", {}, {**VIT, "model_type": "clip_vision_model"}),
    ("llava", "llama", {}, {**VIT, "model_type": "siglip_vision_model", "vision_use_head": False}),
    ("llava", "mistral", {}, {**VIT, "model_type": "pixtral"}),
    ("mistral3", "mistral", {}, {**VIT, "model_type": "pixtral"}),
    ("gemma3", "gemma3_text", {}, {**VIT, "model_type": "siglip_vision_model", "vision_use_head": False}),
    (
        "llama4",
        "llama4_text",
        {"intermediate_size_mlp": 80, "num_local_experts": 4, "num_experts_per_tok": 1},
        {**LLAMA4_VIT, "model_type": "llama4_vision_model"},
    ),
    ("qwen2_vl", "qwen2_vl_text", {}, {**QWEN_VIT, "embed_dim": 48, "hidden_size": 64, "model_type": "qwen2_vl"}),
    ("qwen2_5_vl", "qwen2_5_vl_text", {}, {**WIDE_QWEN_VIT, "model_type": "qwen2_5_vl"}),
    ("qwen3_vl", "qwen3_vl_text", {}, {**WIDE_QWEN_VIT, **DEEP, "model_type": "qwen3_vl"}),
]
LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
TOWER = re.compile("vision|visual|projector|image_")


def built(kind: str, fields: Mapping[str, Any], *, wrapper: bool = False) -> tuple[Any, Any]:
    """The configuration and the transformers model, without memory for weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.for_model(kind, **fields)
    with torch.device("meta"):
        auto = AutoModelForImageTextToText if wrapper else AutoModelForCausalLM
        return config, auto.from_config(config)


def tallied(model: Any) -> tuple[list[int], int, int]:
    """Numbers of each layer, of the parts outside the layers, and of the tower."""
    layers: dict[int, int] = {}
    ends = tower = 0
    corrections = [each for each in model.named_buffers() if each[0].endswith("e_score_correction_bias")]
    for name, tensor in [*model.named_parameters(), *corrections]:
        layer = LAYER.search(name)
        if TOWER.search(name):
            tower += tensor.numel()
        elif layer:
            layers[int(layer[1])] = layers.get(int(layer[1]), 0) + tensor.numel()
        else:
            ends += tensor.numel()
    return [layers[index] for index in range(len(layers))], ends, tower


def numbers(model: Architecture) -> list[int]:
    """Our numbers of each layer. DeepSeek V3's router bias counts twice, because it is stored in 32 bits."""
    wide = model.experts if model.name in ("DeepseekV3ForCausalLM", "deepseek_v3") else 0
    pairs = zip(model.layer_weight_bytes, model.layer_expert_bytes, strict=True)
    return [weights // 2 - wide * bool(experts) for weights, experts in pairs]


@pytest.mark.parametrize(("kind", "fields"), FAMILIES, ids=lambda value: value if isinstance(value, str) else "")
def test_each_layer_weighs_what_transformers_builds(kind: str, fields: dict[str, Any]) -> None:
    config, model = built(kind, fields)
    layers, ends, _ = tallied(model)
    ours = read_architecture({**config.to_dict(), "dtype": "float16"})
    assert numbers(ours) == layers
    assert ours.embedding_bytes + ours.final_norm_bytes + ours.lm_head_bytes == 2 * ends
    assert ours.parameters == sum(layers) + ends
    sliding = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
    if any(sliding):
        assert [window is not None for window in ours.layer_window_tokens] == sliding


@pytest.mark.parametrize(("kind", "fields"), FAMILIES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_headers_of_a_saved_model_agree_with_the_formula(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    config, model = built(kind, fields)
    model.to_empty(device="cpu").half().save_pretrained(tmp_path)
    written = {**config.to_dict(), "dtype": "float16"}
    by_formula, by_headers = read_architecture(written), read_architecture(written, tensors=read_directory(tmp_path))
    assert by_headers.measured
    # transformers saves DeepSeek V3's bias in the model's dtype, but the engine holds it in 32 bits.
    if kind != "deepseek_v3":
        assert by_headers.layer_weight_bytes == by_formula.layer_weight_bytes
        assert by_headers.weight_bytes == by_formula.weight_bytes
    assert by_headers.layer_expert_bytes == by_formula.layer_expert_bytes
    assert by_headers.token_embedding_bytes == by_formula.token_embedding_bytes
    assert (by_headers.final_norm_bytes, by_headers.lm_head_bytes) == (
        by_formula.final_norm_bytes,
        by_formula.lm_head_bytes,
    )
    assert by_headers.parameters == by_formula.parameters


@pytest.mark.parametrize(
    ("kind", "text", "more", "vision"), WRAPPERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_wrappers_tower_weighs_what_transformers_builds(
    kind: str, text: str, more: dict[str, Any], vision: dict[str, Any]
) -> None:
    fields = {"text_config": {**SMALL, "head_dim": 16, **more, "model_type": text}, "vision_config": vision}
    config, model = built(kind, fields, wrapper=True)
    layers, ends, tower = tallied(model)
    named = {"architectures": [type(model).__name__], "model_type": kind, "dtype": "float16"}
    ours = read_architecture({**fields, **named, "tie_word_embeddings": config.tie_word_embeddings})
    assert ours.tower_bytes == 2 * tower
    assert numbers(ours) == layers
    assert ours.parameters == sum(layers) + ends + tower
