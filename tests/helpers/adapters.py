"""LoRA adapters made on the spot, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

MODULES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def make_adapter(directory: Path, config: dict[str, Any], *, seed: int = 1, rank: int = 8, **changes: Any) -> Path:
    """An adapter of a model with this config.json, strong enough to change its tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    hidden, width = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    kv = head * config.get("num_key_value_heads", config["num_attention_heads"])
    sides = {"q_proj": (hidden, head * config["num_attention_heads"]), "v_proj": (hidden, kv)}
    sides["down_proj"] = (width, hidden)
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module in MODULES:
            inputs, outputs = sides[module.rpartition(".")[2]]
            path = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(rank, inputs, generator=random) * 0.3
            tensors[f"{path}.lora_B.weight"] = torch.randn(outputs, rank, generator=random) * 0.3
    save_file(tensors, directory / "adapter_model.safetensors")
    names = [module.rpartition(".")[2] for module in MODULES]
    document = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": names, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps({**document, **changes}))
    return directory
