"""Llama 4, text: experts beside a shared one on some layers, and chunked attention on most."""

from __future__ import annotations

from uellm.errors import BadInput
from uellm.models.families.parts import CHUNKED, FULL, attention, expert, experts, gated_mlp, heads, windows
from uellm.models.fields import Config
from uellm.models.shown import shown
from uellm.models.weights import Blueprint, Layer, WeightMatrix

FULL_EVERY = 4  # `no_rope_layer_interval`: every fourth layer has no positions and attends to everything


def llama4(config: Config) -> Blueprint:
    """Llama 4 Scout and Maverick; `intermediate_size` is an expert's width, `intermediate_size_mlp` a dense layer's."""
    hidden, layers = config.size("hidden_size"), config.layers()
    of, mixture = heads(config, hidden), experts(config, "num_local_experts", "intermediate_size")
    sparse = _moe_layers(config, layers)
    ffn = config.size("intermediate_size_mlp") if len(sparse) < layers else 0
    bias = config.flag("attention_bias", default=False)
    base = attention(hidden, of, qkv_bias=bias, output_bias=bias)
    path = "feed_forward"
    moe = (
        *base,
        WeightMatrix(f"{path}.router", mixture.total, hidden, quantizable=False),
        expert(f"{path}.experts.gate_up_proj", 2 * mixture.width, hidden, mixture),
        expert(f"{path}.experts.down_proj", hidden, mixture.width, mixture),
        *gated_mlp(hidden, mixture.width, path=f"{path}.shared_expert"),
    )
    dense = base + gated_mlp(hidden, ffn, path=path)
    reach = windows(config, layers, _kinds(config, layers))
    return Blueprint(
        layers=tuple(
            Layer(moe if index in sparse else dense, 2 * hidden, of.kv_numbers, of.flops, reach[index])
            for index in range(layers)
        ),
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=max(ffn, mixture.width * (mixture.per_token + 1)),
        vocab_size=config.size("vocab_size"),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=hidden,
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.longest(),
        experts=mixture.total,
        experts_per_token=mixture.per_token,
        tensor_widths=(("intermediate_size", mixture.width), *((("intermediate_size_mlp", ffn),) if ffn else ())),
    )


def _moe_layers(config: Config, layers: int) -> frozenset[int]:
    listed = config.indices("moe_layers", layers)
    if listed is not None:
        return listed
    step = config.size("interleave_moe_layer_step", default=1)
    return frozenset(range(step - 1, layers, step))


def _kinds(config: Config, layers: int) -> list[str]:
    listed = config.list_of("no_rope_layers", layers)
    if listed is None:
        every = config.size("no_rope_layer_interval", default=FULL_EVERY)
        return [FULL if (index + 1) % every == 0 else CHUNKED for index in range(layers)]
    for value in listed:
        if value not in (0, 1):
            raise BadInput(f"{config.prefix}.no_rope_layers", f"must hold 0 (no positions) or 1, not {shown(value)}")
    return [CHUNKED if value else FULL for value in listed]
