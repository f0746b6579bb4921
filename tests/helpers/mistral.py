"""Files of models in Mistral's own format."""

from __future__ import annotations

from typing import Any

NEMO: dict[str, Any] = {
    "dim": 5120,
    "n_layers": 40,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
    "vocab_size": 131072,
    "rope_theta": 1000000.0,
    "dtype": "bfloat16",
}
ENCODER: dict[str, Any] = {
    "hidden_size": 1024,
    "num_channels": 3,
    "image_size": 1024,
    "patch_size": 16,
    "rope_theta": 10000.0,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_token_id": 10,
}
PIXTRAL = {**NEMO, "vision_encoder": ENCODER}
MERGES = {"mm_projector_id": "patch_merge", "spatial_merge_size": 2, "adapter_bias": False}
PIXTRAL_MERGING = {**NEMO, "vision_encoder": {**ENCODER, **MERGES, "add_pre_mm_projector_layer_norm": True}}
SOUND: dict[str, Any] = {
    "encoder_args": {
        "audio_encoding_args": {"sampling_rate": 16000, "num_mel_bins": 128, "hop_length": 160, "window_size": 400},
        "dim": 1280,
        "n_layers": 32,
        "head_dim": 64,
        "hidden_dim": 5120,
        "n_heads": 20,
        "vocab_size": 51866,
    },
    "downsample_args": {"downsample_factor": 4},
}
VOXTRAL = {**NEMO, "multimodal": {"whisper_model_args": SOUND}}
SMALL = {**NEMO, "dim": 128, "n_layers": 4, "head_dim": 32, "hidden_dim": 192, "n_heads": 4, "n_kv_heads": 2}
EXPERTS = {**SMALL, "moe": {"num_experts": 4, "num_experts_per_tok": 2}}
LATENT = {
    **SMALL,
    "n_kv_heads": 4,
    "q_lora_rank": 40,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "llama_4_scaling": {"original_max_position_embeddings": 8192, "beta": 0.1},
    "moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "route_every_n": 1,
        "expert_hidden_dim": 64,
        "num_expert_groups": 1,
        "num_expert_groups_per_tok": 1,
    },
}
