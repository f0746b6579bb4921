"""Families and encoders as vLLM 0.32 or transformers 5.19 build them on the meta device, from their default configs."""

from __future__ import annotations

from typing import Any

import pytest

from uellm.errors import BadInput
from uellm.models import Tensor, read_architecture
from uellm.models.fields import Config

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
        ("blip-2", "vision_config", "blip_2_vision_model", 768, 1_091_705_088),
        ("granite_speech", "encoder_config", "granite_speech_encoder", 4096, 383_097_898),
        ("minicpmv4_6", "vision_config", "minicpmv4_6_vision", 4096, 157_399_552),
        ("minicpmv4_7", "vision_config", "minicpmv4_7_vision", 4096, 157_399_552),
        ("muse_glimmer", "vision_config", "muse_glimmer_vision", 6656, 1_921_845_760),
    ],
)
def test_an_encoder_weighs_what_the_engine_builds(
    model_type: str, section: str, kind: str, text: int, numbers: int
) -> None:
    assert encoder_numbers(model_type, section, {"model_type": kind}, text) == numbers


def test_nvidias_fast_conformer_weighs_what_transformers_builds() -> None:
    """ParakeetEncoder has 607,749,120 numbers by its defaults, and a projection stands behind it."""
    numbers = encoder_numbers("cohere_asr", "encoder_config", {"model_type": "parakeet_encoder"}, 1024)
    assert numbers == 607_749_120 + 1024 * 1024 + 1024


def test_coheres_model_of_speech_weighs_what_transformers_builds() -> None:
    encoder = {"model_type": "parakeet_encoder", "hidden_size": 1280, "intermediate_size": 5120, "num_mel_bins": 128}
    decoder = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8}
    whole = {"architectures": ["CohereAsrForConditionalGeneration"], "model_type": "cohere_asr", "dtype": "bfloat16"}
    whole |= {**decoder, "vocab_size": 16384, "max_position_embeddings": 1024}
    model = read_architecture({**whole, "encoder_config": {**encoder, "num_hidden_layers": 48}})
    assert (model.parameters, model.exact) == (2_065_647_872, True)
    # Keys and values of 5,000 frames.
    assert model.layer_state_bytes == (5000 * model.layer_kv_bytes_per_token[0],) * 8


def test_siglip_2_counts_its_positions_and_lfm2s_projector_has_a_norm() -> None:
    siglip = {"model_type": "siglip2_vision_model", "hidden_size": 768, "intermediate_size": 3072, "patch_size": 16}
    siglip |= {"num_hidden_layers": 12, "num_patches": 256}
    whole = {"downsample_factor": 2, "projector_hidden_size": 2560}
    # As transformers builds it, without the head for pooling.
    assert encoder_numbers("lfm2_vl", "vision_config", siglip, 2560, **whole) == 100_272_384
    plain = encoder_numbers("lfm2_vl", "vision_config", siglip, 2560, **whole, projector_use_layernorm=False)
    assert plain == 100_272_384 - 2 * 4 * 768


def test_kimi_k25s_encoder_may_have_names_of_its_own() -> None:
    named = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
    own = {name if name == "patch_size" else f"vt_{name}": size for name, size in named.items()}
    numbers = encoder_numbers("kimi_k25", "vision_config", own, 7168)
    assert numbers == encoder_numbers("kimi_k25", "vision_config", named | {"model_type": "moonvit"}, 7168)


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


def test_zamba2s_state_is_that_of_a_multiple_of_the_hidden_size() -> None:
    """As vLLM keeps it: 256 x 64 numbers, and 3 x (256 + 2 x 64) of the convolution."""
    small = {**ZAMBA2, "hidden_size": 128, "num_attention_heads": 4, "n_mamba_heads": 8}
    small |= {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "hybrid", "hybrid"]}
    model = read_architecture({"architectures": ["Zamba2ForCausalLM"], "dtype": "bfloat16", **small})
    assert model.layer_state_bytes == (2 * (256 * 64 + 3 * (256 + 2 * 64)),) * 4


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


HY4 = {
    "architectures": ["HYV4ForCausalLM"],
    "model_type": "hy_v4",
    "dtype": "bfloat16",
    "vocab_size": 120832,
    "hidden_size": 2816,
    "intermediate_size": 6912,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 16,
    "hc_mult": 4,
    "mlp_layer_types": ["dense", *["sparse"] * 33],
    "tie_word_embeddings": False,
}


def test_hy_4_has_gates_sinks_and_copies_that_are_not_mixed_with_each_other() -> None:
    """transformers' class has 58,278,193,133 parameters by its defaults, without the experts' corrections."""
    kinds = ["full", "full", *["shared", "shared", "shared", "full"] * 8]
    whole = read_architecture({**HY4, "indexer_types": ["full"] * 34})
    shared = read_architecture({**HY4, "indexer_types": kinds})
    indexer = 16 * 128 * 1536 + 128 * 2816 + 16 * 2816 + 2 * 128
    assert whole.parameters - shared.parameters == kinds.count("shared") * indexer
    assert (shared.exact, shared.parameters - 33 * 256) == (True, 58_278_193_133)


def test_minicpm3_keeps_the_keys_and_values_of_every_head() -> None:
    """vLLM has no latent cache for this class: 2 x 40 heads x 96 numbers, not 288."""
    model = read_architecture(MINICPM3)
    assert set(model.layer_kv_bytes_per_token) == {2 * 2 * 40 * 96}
    assert (model.kv_heads, model.kv_shared_by_tensor) == (40, True)


EMBEDDING_GEMMA2 = {"architectures": ["EmbeddingGemma2Model"], "model_type": "embedding_gemma2", "dtype": "bfloat16"}


def test_embedding_gemma_2_has_wide_heads_in_every_sixth_layer_and_no_table_for_each_layer() -> None:
    text = {"model_type": "embedding_gemma2_text"}
    model = read_architecture({**EMBEDDING_GEMMA2, "text_config": text})
    assert (model.weight_bytes, model.kv_bytes_per_token, model.exact) == (542_005_248, 0, True)
    named = {
        **text,
        "per_layer_config": {f"{at:02d}": {"head_dim": 512, "num_key_value_heads": 1} for at in (5, 11, 17, 23)},
    }
    assert read_architecture({**EMBEDDING_GEMMA2, "text_config": named}).layer_weight_bytes == model.layer_weight_bytes
    wider = {**text, "embedding_dim": 1024}
    assert (
        read_architecture({**EMBEDDING_GEMMA2, "text_config": wider}).weight_bytes - model.weight_bytes == 2 * 256 * 512
    )


def test_muse_glimmer_has_four_norms_and_a_gate_as_wide_as_the_queries() -> None:
    config = {
        "architectures": ["MuseGlimmerForConditionalGeneration"],
        "model_type": "muse_glimmer",
        "dtype": "bfloat16",
    }
    model = read_architecture({**config, "text_config": {"model_type": "muse_glimmer_text"}})
    assert sum(model.layer_weight_bytes) == 50_330_222_592
    assert list(model.layer_window_tokens[:4]) == [2048, 2048, 2048, None]


INKLING_TEXT = {
    "model_type": "inkling_model",
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "swa_num_key_value_heads": 4,
    "swa_head_dim": 32,
    "num_hidden_layers": 6,
    "local_layer_ids": [0, 1, 3, 4],
    "sliding_window_size": 128,
    "dense_mlp_idx": 2,
    "dense_intermediate_size": 1024,
    "intermediate_size": 256,
    "n_routed_experts": 13,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "use_gate_bias": True,
    "use_global_scale": True,
    "use_embed_norm": True,
    "d_rel": 16,
    "rel_extent": 64,
    "vocab_size": 1024,
}
INKLING = {"architectures": ["InklingForConditionalGeneration"], "model_type": "inkling_mm_model", "dtype": "bfloat16"}
INKLING_IMAGES = {"decoder_dmodel": 512, "patch_size": 40, "temporal_patch_size": 2, "n_channels": 3, "n_layers": 4}
INKLING_SOUND = {"decoder_dmodel": 512, "n_mel_bins": 80, "mel_vocab_size": 16, "use_audio_norm": True}


def test_inkling_keeps_the_inputs_of_its_convolutions_beside_keys_and_values() -> None:
    model = read_architecture({**INKLING, "text_config": INKLING_TEXT})
    # Layers with a window have 4 KV heads of 32 numbers, the others 2 of 64.
    assert model.layer_kv_bytes_per_token == (512,) * 6
    assert model.layer_window_tokens == (128, 128, None, 128, 128, None)
    # 2 x 32 + 2 x 512 / 4 numbers a head, and 2 x 64 + 2 x 512 / 2: padded to 512 and 1,024, for the last 4 tokens.
    assert [[(each.bytes_per_token, each.tokens) for each in caches] for caches in model.layer_recent] == [
        [(2 * 4 * 512, 4)] if window else [(2 * 2 * 1024, 4)] for window in model.layer_window_tokens
    ]


def test_inklings_encoders_are_built_where_their_width_is_given() -> None:
    whole = {**INKLING, "text_config": INKLING_TEXT}
    both = read_architecture({**whole, "vision_config": INKLING_IMAGES, "audio_config": INKLING_SOUND})
    assert both.tower_bytes // 2 == 80 * 16 * 512 + 512 + 29_669_888
    assert read_architecture({**whole, "vision_config": {"patch_size": 40}, "audio_config": {}}).tower_bytes == 0
    with pytest.raises(BadInput, match=r"vision_config\.patch_size: must be at most 256"):
        read_architecture({**whole, "vision_config": {**INKLING_IMAGES, "patch_size": 1 << 20}})


def test_berts_embedder_of_sparse_vectors_has_a_head_over_the_vocabulary() -> None:
    bert = {
        "model_type": "bert",
        "vocab_size": 30528,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "dtype": "bfloat16",
    }
    bert |= {"num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2}
    plain, sparse = (
        read_architecture({**bert, "architectures": [name]}) for name in ("BertModel", "BertSpladeSparseEmbeddingModel")
    )
    # A dense layer, and a row and a bias for each word; its norm, 1,536 numbers, is left out.
    assert sparse.weight_bytes - plain.weight_bytes == 2 * (768 * 768 + 768 + 30528 * 768 + 30528)


HRM = {"architectures": ["HrmTextForCausalLM"], "model_type": "hrm_text", "dtype": "bfloat16", "vocab_size": 151808}
HRM |= {"hidden_size": 1536, "intermediate_size": 4096, "num_attention_heads": 12, "head_dim": 128}
HRM |= {"H_cycles": 2, "L_cycles": 3, "num_layers_per_stack": 16, "num_hidden_layers": 128}


def test_hrm_runs_two_stacks_of_layers_several_times_with_keys_and_values_of_each_run() -> None:
    model = read_architecture(HRM)
    assert (model.weight_bytes, model.kv_bytes_per_token, model.layers) == (2_895_645_696, 128 * 6144, 128)
    assert [index for index in range(128) if model.layer_weight_bytes[index]] == list(range(16))
    assert sum(model.layer_flops_per_token) == 128 * model.layer_flops_per_token[0] / 2
    shape = (6144, 1536)
    tensors = {
        f"model.{stack}_module.layers.{at}.gqkv.weight": Tensor("BF16", shape) for stack in "LH" for at in range(16)
    }
    read = read_architecture(HRM, tensors={**tensors, "model.embed_tokens.weight": Tensor("BF16", (151808, 1536))})
    assert read.layer_weight_bytes == (2 * 2 * 6144 * 1536,) * 16 + (0,) * 112
    with pytest.raises(BadInput, match=r"config\.H_cycles: makes more than 4096 layers"):
        read_architecture({**HRM, "H_cycles": 100})


def test_cosmos_3_edge_has_plain_mlps_and_a_projector_with_a_section_of_its_own() -> None:
    whole = {
        "architectures": ["Cosmos3EdgeForConditionalGeneration"],
        "model_type": "cosmos3_edge",
        "dtype": "bfloat16",
    }
    whole |= {"text_config": {"model_type": "cosmos3_edge_text"}}
    model = read_architecture({**whole, "vision_config": {"model_type": "cosmos3_edge_vision"}})
    assert (model.weight_bytes - model.tower_bytes, model.tower_bytes) == (3_892_547_584, 943_293_408)
    with pytest.raises(BadInput, match=r"config\.projector_config: must be an object"):
        read_architecture({**whole, "vision_config": {"model_type": "cosmos3_edge_vision"}, "projector_config": 3})


def test_bges_embedder_has_a_dense_layer_and_a_weight_for_words() -> None:
    bert = {"model_type": "xlm-roberta", "vocab_size": 30528, "hidden_size": 768, "intermediate_size": 3072}
    bert |= {"num_hidden_layers": 1, "num_attention_heads": 12, "max_position_embeddings": 514, "dtype": "bfloat16"}
    plain, bge = (
        read_architecture({**bert, "architectures": [name]}) for name in ("XLMRobertaModel", "BgeM3EmbeddingModel")
    )
    assert bge.weight_bytes - plain.weight_bytes == 2 * (768 * 768 + 768 + 768 + 1)


V41_TEXT = {
    "model_type": "deepseek_v41_text",
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "head_dim": 512,
    "q_lora_rank": 32,
    "o_lora_rank": 16,
    "o_groups": 4,
    "sliding_window": 128,
    "compress_ratios": [0, 2, 2, 1, 1, 1, 0],  # the last one is for multi-token prediction
    "kv_source_layer_ids": [1, 3],
    "index_source_layer_ids": [1, 3, 5],
    "index_n_heads": 4,
    "index_head_dim": 128,
    "index_topk": 256,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "hc_mult": 4,
    "engram_layer_ids": [2],
    "engram_num_embeddings": [1000],
    "engram_max_ngram_size": 4,
    "engram_n_heads": 8,
    "engram_head_dim": 32,
    "vocab_size": 512,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}
V41 = {"architectures": ["DeepseekV41ForCausalLM"], "model_type": "deepseek_v41", "dtype": "bfloat16"}


def test_deepseek_v41_has_compressors_and_indexers_in_the_layers_that_others_use_alone() -> None:
    model = read_architecture({**V41, "text_config": V41_TEXT})
    plain, *rest = model.layer_weight_bytes
    # A compressor with its gate and norm; an indexer, with a key from the compressor and its norm.
    keys, query, key = 512 * 64 + 512, 4 * 128 * 32 + 4 * 64, 128 * 512 + 128
    lookup = 5 * 64 * (3 * 8 * 32) + 2 * 4 * 64
    more = [keys + 512 * 64 + query + key, lookup, keys + query + key, 0, query]
    assert [each - plain for each in rest] == [2 * numbers for numbers in more]
    assert model.layer_kv_bytes_per_token == (584, 292 + 66, 584, 584 + 132, 584, 0)
    assert model.layer_window_tokens == (128, None, 128, None, 128, None)
    assert [[(each.bytes_per_token, each.tokens) for each in caches] for caches in model.layer_recent] == [
        *([], [(584, 128)]) * 2,
        [],
        [(584, 128)],
    ]
    # A value and a score of 512 numbers for 8 tokens, in 32 bits.
    assert model.layer_state_bytes == (0, 2 * 512 * 8 * 4, 0, 0, 0, 0)
    assert (model.exact, model.supports_pipeline, model.sparse_attention) == (True, False, True)


def test_deepseek_v41s_lists_of_layers_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], Config.indices
    monkeypatch.setattr(Config, "indices", lambda self, name, length: read.append(name) or real(self, name, length))
    read_architecture({**V41, "text_config": V41_TEXT})
    assert sorted(read) == ["engram_layer_ids", "index_source_layer_ids", "kv_source_layer_ids"]


def test_deepseek_v41s_tables_of_n_grams_are_in_host_memory() -> None:
    model = read_architecture({**V41, "text_config": V41_TEXT})
    without = read_architecture(
        {**V41, "text_config": {**V41_TEXT, "engram_layer_ids": []} | {"engram_num_embeddings": []}}
    )
    assert model.host_bytes == 1000 * 32 + 1000
    assert model.parameters - without.parameters == 1000 * 32 + 5 * 64 * (3 * 8 * 32) + 2 * 4 * 64
    assert model.weight_bytes - without.weight_bytes == 2 * (5 * 64 * (3 * 8 * 32) + 2 * 4 * 64)


def test_tables_of_n_grams_in_a_checkpoint_are_no_weights_of_a_gpu() -> None:
    config = {**V41, "text_config": V41_TEXT}
    tensors = {f"layers.{index}.attn_norm.weight": Tensor("BF16", (64,)) for index in range(6)}
    tensors["embed_tokens.weight"] = Tensor("BF16", (512, 64))
    plain = read_architecture(config, tensors=tensors)
    tensors["layers.2.engram.embed.weight"] = Tensor("F8_E4M3", (1000, 32))
    tensors["layers.2.engram.embed.scale"] = Tensor("F8_E8M0", (1000, 1))
    model = read_architecture(config, tensors=tensors)
    assert (model.weight_bytes, model.host_bytes) == (plain.weight_bytes, 1000 * 33)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compress_ratios": [0, 4, 4, 0, 0, 0]}, r"compress_ratios: must be a list of 0, 1, 2"),
        ({"index_source_layer_ids": [1] * 7}, r"index_source_layer_ids: has 7 entries, but there are 6 layers"),
        ({"kv_source_layer_ids": [3]}, r"kv_source_layer_ids: names no layer for layer 1, which compresses"),
        (
            {"engram_num_embeddings": []},
            r"engram_num_embeddings: must be a list with an entry for each layer of n-grams",
        ),
    ],
)
def test_a_deepseek_v41_that_the_engine_refuses_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_architecture({**V41, "text_config": {**V41_TEXT, **fields}})


def test_deepseek_v4s_encoder_of_images_has_its_sizes_beside_or_in_a_section() -> None:
    images = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    inside = read_architecture({**V41, "text_config": V41_TEXT, "vision_config": images})
    block = 3 * 32 * 33 + 32 * 33 + 3 * 32 * 48 + 2 * 32
    numbers = 32 * (3 * 14 * 14 + 1) + 2 * block + 32 + 64 * (9 * 32 + 1) + 64 * 65 + 3 * 64
    assert inside.tower_bytes == 2 * numbers
    flat = {"vision_dim": 32, "vision_inter_dim": 48, "vision_n_layers": 2, "vision_n_heads": 2}
    v4 = {**V41_TEXT, "architectures": ["DeepseekV4ForConditionalGeneration"], "model_type": "deepseek_v4"}
    beside = read_architecture({**v4, **flat, "compress_ratios": [0, 0, 4, 128, 4, 128], "dtype": "bfloat16"})
    assert beside.tower_bytes == 2 * numbers


def test_a_layer_that_is_run_again_reads_its_weights_again() -> None:
    model = read_architecture(HRM)
    stack = model.layer_weight_bytes[0] // 2
    runs = [model.layer_read_bytes(16 * step, 1) for step in range(8)]
    # Three runs of the lower stack and one of the upper, twice; the first run has the weights of both.
    assert runs == [2 * stack, stack, stack, 0, stack, stack, stack, stack]
    again = read_architecture({"architectures": ["Zamba2ForCausalLM"], "dtype": "bfloat16", **ZAMBA2})
    assert sum(map(bool, again.layer_read_again_bytes)) == sum(map(bool, again.layer_kv_bytes_per_token)) - 1
