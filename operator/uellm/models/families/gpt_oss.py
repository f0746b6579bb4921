"""GPT-OSS: experts with biases on every layer, attention sinks, sliding windows on every second layer."""

from __future__ import annotations

from uellm.models.families.parts import FULL, SLIDING, attention, expert, experts, heads, windows
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix


def gpt_oss(config: Config) -> Blueprint:
    """GPT-OSS 20B and 120B. The published checkpoints store the experts in MXFP4."""
    hidden, layers = config.size("hidden_size"), config.layers()
    of, mixture = heads(config, hidden), experts(config, "num_local_experts", "intermediate_size")
    bias = config.flag("attention_bias", default=True)
    linears = (
        *attention(hidden, of, qkv_bias=bias, output_bias=bias),
        WeightMatrix("mlp.router", mixture.total, hidden, bias=True, quantizable=False),
        expert("mlp.experts.gate_up_proj", 2 * mixture.width, hidden, mixture, bias=True),
        expert("mlp.experts.down_proj", hidden, mixture.width, mixture, bias=True),
    )
    other = 2 * hidden + of.query  # two norms, and a sink for each head
    kinds = [FULL if index % 2 else SLIDING for index in range(layers)]
    return Blueprint(
        layers=tuple(
            Layer(linears, other, of.kv_numbers, of.flops, window) for window in windows(config, layers, kinds)
        ),
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=mixture.width * mixture.per_token,
        vocab_size=config.size("vocab_size"),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=hidden,
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.longest(),
        experts=mixture.total,
        experts_per_token=mixture.per_token,
        tensor_widths=(("intermediate_size", mixture.width),),
    )
