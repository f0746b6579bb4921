"""Families and encoders as vLLM 0.32 or transformers 5.19 build them on the meta device, from their default configs."""

from __future__ import annotations

from typing import Any

import pytest

from uellm.errors import BadInput
from uellm.models import read_architecture

QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
ZAMBA2_HYBRID = (6, 12, 18, 24, 30, 36, 42, 47, 51)
ZAMBA2 = {
    "model_type": "zamba2",
    "vocab_size": 32000,
    "hidden_size": 2560,
    "num_hidden_layers": 54,
    "num_attention_heads": 32,
    "mamba_d_state": 64,
    "n_mamba_heads": 8,
    "num_mem_blocks": 1,
    "adapter_rank": 128,
}
MINICPM3 = {
    "model_type": "minicpm3",
    "vocab_size": 73448,
    "hidden_size": 2560,
    "intermediate_size": 6400,
    "num_hidden_layers": 62,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "q_lora_rank": 768,
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
}
DSA = {
    "model_type": "glm_moe_dsa",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "q_lora_rank": 40,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 8,
    "index_topk": 16,
    "index_n_heads": 2,
    "index_head_dim": 128,
}


def encoder_numbers(model_type: str, section: str, fields: dict[str, Any], text: int, **whole: Any) -> int:
    inner = {**QWEN2, "hidden_size": text}
    config = {"architectures": ["AnyForConditionalGeneration"], "model_type": model_type, "dtype": "bfloat16"}
    model = read_architecture({**config, **whole, "text_config": inner, section: fields})
    assert not any("reckoned" in note or "not counted" in note for note in model.notes)
    return model.tower_bytes // 2


@pytest.mark.parametrize(
    ("model_type", "section", "kind", "text", "numbers"),
    [
        ("glm_ocr", "vision_config", "glm_ocr_vision", 1024, 431_760_896),
        ("glmasr", "audio_config", "glmasr_encoder", 2048, 664_456_192),
        ("exaone4_5", "vision_config", "exaone4_5_vision", 4096, 2_671_868_672),
        ("paddleocr_vl", "vision_config", "paddleocr_vl_vision", 1024, 438_947_440),
        ("glm5_next", "vision_config", "glm5_next_vision", 4096, 460_072_448),
    ],
)
def test_an_encoder_weighs_what_the_engine_builds(
    model_type: str, section: str, kind: str, text: int, numbers: int
) -> None:
    assert encoder_numbers(model_type, section, {"model_type": kind}, text) == numbers


def test_coheres_projector_is_as_wide_as_its_config_says() -> None:
    siglip = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 3072}
    siglip |= {"num_hidden_layers": 27, "image_size": 512, "patch_size": 16}
    whole = {"downsample_factor": 2, "alignment_intermediate_size": 36864}
    assert encoder_numbers("cohere2_vision", "vision_config", siglip, 8192, **whole) == 657_770_240


def test_both_of_vibevoices_encoders_are_counted() -> None:
    kind = {"model_type": "vibevoice_acoustic_tokenizer_encoder"}
    whole = {"semantic_tokenizer_encoder_config": {**kind, "hidden_size": 128}}
    numbers = encoder_numbers("vibevoice_asr", "acoustic_tokenizer_encoder_config", kind, 4096, **whole)
    assert numbers == 722_675_072
    with pytest.raises(BadInput, match=r"acoustic_tokenizer_encoder_config\.depths: has 2 entries"):
        encoder_numbers("vibevoice_asr", "acoustic_tokenizer_encoder_config", {**kind, "depths": [1, 2]}, 4096)


def test_zamba2_shares_a_block_among_the_layers_that_use_it() -> None:
    model = read_architecture({"architectures": ["Zamba2ForCausalLM"], "dtype": "bfloat16", **ZAMBA2})
    assert (model.parameters, model.exact) == (2_481_848_336, True)
    assert [index for index, kv in enumerate(model.layer_kv_bytes_per_token) if kv] == list(ZAMBA2_HYBRID)
    first, second = ZAMBA2_HYBRID[:2]
    assert model.layer_weight_bytes[first] > 2 * model.layer_weight_bytes[second]
    # Each use computes as much as the first.
    assert model.layer_flops_per_token[first] == model.layer_flops_per_token[second]


def test_zamba2s_kinds_of_layers_may_be_named_or_numbered() -> None:
    numbered = read_architecture({**ZAMBA2, "hybrid_layer_ids": list(ZAMBA2_HYBRID)})
    kinds = ["hybrid" if index in ZAMBA2_HYBRID else "mamba" for index in range(54)]
    named = read_architecture({**ZAMBA2, "layers_block_type": kinds})
    assert numbered.layer_weight_bytes == named.layer_weight_bytes == read_architecture(ZAMBA2).layer_weight_bytes
    with pytest.raises(BadInput, match=r"config\.layers_block_type: is missing"):
        read_architecture({**ZAMBA2, "num_hidden_layers": 10})


def test_glm_5_next_has_hyper_connections_and_an_indexer_that_keeps_one_key_for_many() -> None:
    kinds = ["indexed_attention" if index % 4 == 3 else "linear_attention" for index in range(45)]
    text = {"model_type": "glm5_next_text", "index_kpool": 16, "layer_types": kinds, "hc_mult": 4}
    text |= {"mlp_layer_types": ["dense"] * 3 + ["sparse"] * 42}
    whole = {"architectures": ["Glm5NextForConditionalGeneration"], "model_type": "glm5_next", "dtype": "bfloat16"}
    model = read_architecture({**whole, "text_config": text, "vision_config": {"model_type": "glm5_next_vision"}})
    # transformers has no room for the routers' corrections, a number an expert.
    assert model.parameters == 313_786_889_214 + 42 * 288
    # 512 numbers of latent, and of the indexer 128 bytes and a scale for 16 tokens.
    assert {each for each in model.layer_kv_bytes_per_token if each} == {2 * 512 + 9}


def test_an_indexer_may_be_shared_by_the_layers_behind_it() -> None:
    config = {**DSA, "index_topk_freq": 4}
    shared = read_architecture({**config, "index_skip_topk_offset": 1})
    every = read_architecture(DSA)
    fewer = [ours < theirs for ours, theirs in zip(shared.layer_weight_bytes, every.layer_weight_bytes, strict=True)]
    assert fewer == [index % 4 != 0 for index in range(8)]
    named = read_architecture({**DSA, "index_topk_pattern": "FSSSFSSS"})
    assert named.layer_kv_bytes_per_token == shared.layer_kv_bytes_per_token


def test_minicpm3_keeps_the_keys_and_values_of_every_head() -> None:
    """vLLM has no latent cache for this class: 2 x 40 heads x 96 numbers, not 288."""
    model = read_architecture(MINICPM3)
    assert set(model.layer_kv_bytes_per_token) == {2 * 2 * 40 * 96}
    assert (model.kv_heads, model.kv_shared_by_tensor) == (40, True)
