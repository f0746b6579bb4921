"""The headers of a checkpoint of a plain model, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.models import Tensor


def llama_tensors(config: Mapping[str, Any], dtype: str = "BF16") -> dict[str, Tensor]:
    """The tensors of a LlamaForCausalLM with a head of its own, as transformers names them."""
    hidden, wide, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes = {
        f"model.layers.{number}.{name}": shape
        for number in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    shapes |= {"model.embed_tokens": (words, hidden), "model.norm": (hidden,), "lm_head": (words, hidden)}
    return {f"{name}.weight": Tensor(dtype, shape) for name, shape in shapes.items()}
