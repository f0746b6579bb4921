"""Weights, KV cache and state by layer against vLLM's own classes and KV cache specs, on the meta device.

One process of the engine builds all models; each is tiny, so that no width equals another.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uellm.cli.model import document
from uellm.models import read_architecture, with_engine_facts

pytestmark = pytest.mark.timeout(1800)

SMALL = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 40,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_d_conv": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama"},
    # No kinds of layers: the engine gives all of them the model's window.
    "MistralForCausalLM": {"model_type": "mistral", "sliding_window": 512},
    "Qwen3ForCausalLM": {"model_type": "qwen3"},
    "Qwen3MoeForCausalLM": {"model_type": "qwen3_moe", **EXPERTS},
    "Qwen3NextForCausalLM": {
        "model_type": "qwen3_next",
        **EXPERTS,
        **DELTA,
        "shared_expert_intermediate_size": 96,
    },
    "DeepseekV2ForCausalLM": {"model_type": "deepseek_v2", **LATENT},
    "Glm4ForCausalLM": {"model_type": "glm4"},
    "Glm4MoeForCausalLM": {
        "model_type": "glm4_moe",
        **{key: LATENT[key] for key in ("n_routed_experts", "n_shared_experts", "num_experts_per_tok")},
        **{key: LATENT[key] for key in ("moe_intermediate_size", "first_k_dense_replace", "n_group", "topk_group")},
    },
    "Gemma3ForCausalLM": {"model_type": "gemma3_text", "sliding_window": 512, "tie_word_embeddings": True},
    "JambaForCausalLM": {
        "model_type": "jamba",
        "head_dim": 32,  # that of all heads together is the hidden size
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_dt_rank": 8,
    },
    "FalconH1ForCausalLM": {"model_type": "falcon_h1", **MAMBA2, "mamba_d_ssm": 256},
    "NemotronHForCausalLM": {
        "model_type": "nemotron_h",
        "hybrid_override_pattern": "M-M*",
        "mamba_num_heads": 8,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 2,
    },
    "MambaForCausalLM": {"model_type": "mamba", "state_size": 16, "tie_word_embeddings": True},
    "Lfm2ForCausalLM": {
        "model_type": "lfm2",
        "layer_types": ["conv", "conv", "full_attention", "conv"],
        "head_dim": 32,
        **dict.fromkeys(("block_dim", "conv_dim", "conv_dim_out"), 128),
        **dict.fromkeys(("block_multiple_of", "block_ffn_dim_multiplier"), 1),
        "conv_L_cache": 3,
        "block_auto_adjust_ff_dim": False,
        "tie_word_embeddings": True,
    },
    "Ernie4_5ForCausalLM": {"model_type": "ernie4_5"},
    "GraniteForCausalLM": {"model_type": "granite"},
    "Cohere2ForCausalLM": {"model_type": "cohere2", "sliding_window": 512, "tie_word_embeddings": True},
    "SeedOssForCausalLM": {"model_type": "seed_oss"},
    "StableLmForCausalLM": {"model_type": "stablelm", "head_dim": 32},
    "MiniCPM3ForCausalLM": {
        "model_type": "minicpm3",
        **{key: LATENT[key] for key in LATENT if key.endswith(("_dim", "_rank", "_heads"))},
        "scale_emb": 1,
        "scale_depth": 1.0,
        "dim_model_base": 128,
    },
    "Zamba2ForCausalLM": {
        "model_type": "zamba2",
        "head_dim": 64,
        "attention_head_dim": 64,
        "num_key_value_heads": 4,
        "n_mamba_heads": 8,
        "num_mem_blocks": 2,
        "adapter_rank": 8,
        "use_shared_attention_adapter": True,
        "layers_block_type": ["mamba", "hybrid", "hybrid", "hybrid"],
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
    },
}
WHOLE = {name: {**SMALL, **fields, "architectures": [name]} for name, fields in CONFIGS.items()}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the engine says of each model."""
    pytest.importorskip("vllm")
    directory = tmp_path_factory.mktemp("configs")
    paths: list[Path] = []
    for name, config in WHOLE.items():
        paths.append(directory / f"{name}.json")
        paths[-1].write_text(json.dumps(config))
    command = [sys.executable, "-m", "uellm.engine_facts", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(WHOLE), done.stderr[-2000:]
    return dict(zip(WHOLE, lines, strict=True))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", WHOLE)
def test_weights_cache_and_state_are_the_engines(engine: dict[str, dict[str, Any]], name: str) -> None:
    assert "error" not in engine[name], engine[name]
    model = read_architecture(WHOLE[name])
    found = with_engine_facts(model, engine[name])
    assert model.layer_kv_bytes_per_token == found.layer_kv_bytes_per_token
    assert model.layer_window_tokens == found.layer_window_tokens
    assert model.layer_state_bytes == found.layer_state_bytes
    assert model.layer_weight_bytes == found.layer_weight_bytes
    assert document(found)["source"] == "engine"
