"""Mixtral, Phi-3.5-MoE, Qwen2-MoE and Qwen3-MoE: attention as in their dense siblings, experts in place of the MLP."""

from __future__ import annotations

from collections.abc import Sequence

from uellm.models.families.dense import qwen_windows
from uellm.models.families.parts import (
    SLIDING,
    Experts,
    Heads,
    attention,
    experts,
    gated_mlp,
    heads,
    routed,
    windows,
)
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix

MIXTRAL_NAMES = ("w1", "w3", "w2")  # gate, up, down


def mixtral(config: Config) -> Blueprint:
    """Mixtral 8x7B and 8x22B: every layer has experts."""
    hidden, layers = config.size("hidden_size"), config.layers()
    of, mixture = heads(config, hidden), experts(config, "num_local_experts", "intermediate_size")
    linears = attention(hidden, of) + routed(hidden, mixture, path="block_sparse_moe", names=MIXTRAL_NAMES)
    return _whole(config, of, mixture, [(linears, 2 * hidden)] * layers, [SLIDING] * layers)


def phimoe(config: Config) -> Blueprint:
    """Phi-3.5-MoE: Mixtral with LayerNorms, and biases where the config says so."""
    hidden, layers = config.size("hidden_size"), config.layers()
    of, mixture = heads(config, hidden), experts(config, "num_local_experts", "intermediate_size")
    bias = config.flag("attention_bias", default=False)
    linears = attention(hidden, of, qkv_bias=bias, output_bias=bias)
    linears += routed(hidden, mixture, path="block_sparse_moe", names=MIXTRAL_NAMES)
    return _whole(
        config,
        of,
        mixture,
        [(linears, 4 * hidden)] * layers,
        [SLIDING] * layers,
        final_norm=2 * hidden,
        head_bias=config.flag("lm_head_bias", default=False),
    )


def qwen2_moe(config: Config) -> Blueprint:
    """Qwen1.5-MoE and Qwen2-MoE: a gated shared expert beside the routed ones; biases on q, k and v."""
    hidden, shared = config.size("hidden_size"), config.size("shared_expert_intermediate_size")
    of = heads(config, hidden)
    mixture = experts(config, "num_experts", "moe_intermediate_size")
    base = attention(hidden, of, qkv_bias=config.flag("qkv_bias", default=True))
    sparse = (
        *base,
        *routed(hidden, mixture),
        *gated_mlp(hidden, shared, path="mlp.shared_expert"),
        WeightMatrix("mlp.shared_expert_gate", 1, hidden, quantizable=False),
    )
    parts = _sparse_and_dense(config, base, sparse, 2 * hidden)
    return _whole(config, of, mixture, parts, qwen_windows(config), shared=shared)


def qwen3_moe(config: Config) -> Blueprint:
    """Qwen3-MoE: no shared expert; norms over each head's query and key."""
    hidden = config.size("hidden_size")
    of = heads(config, hidden)
    mixture = experts(config, "num_experts", "moe_intermediate_size")
    bias = config.flag("attention_bias", default=False)
    base = attention(hidden, of, qkv_bias=bias, output_bias=bias)
    parts = _sparse_and_dense(config, base, base + routed(hidden, mixture), 2 * hidden + 2 * of.width)
    return _whole(config, of, mixture, parts, qwen_windows(config))


Part = tuple[tuple[WeightMatrix, ...], int]  # matrices of a layer, and its other numbers


def _sparse_and_dense(
    config: Config, base: tuple[WeightMatrix, ...], sparse: tuple[WeightMatrix, ...], other: int
) -> list[Part]:
    """Experts on every `decoder_sparse_step`-th layer, except those in `mlp_only_layers`."""
    layers, step = config.layers(), config.size("decoder_sparse_step", default=1)
    dense_layers = config.indices("mlp_only_layers", layers) or frozenset()
    parts: list[Part] = []
    for index in range(layers):
        if index not in dense_layers and (index + 1) % step == 0:
            parts.append((sparse, other))
        else:
            mlp = gated_mlp(config.size("hidden_size"), config.size("intermediate_size"))
            parts.append((base + mlp, other))
    return parts


def _whole(
    config: Config,
    of: Heads,
    mixture: Experts,
    parts: Sequence[Part],
    kinds: Sequence[str],
    *,
    shared: int = 0,
    final_norm: int = 0,
    head_bias: bool = False,
) -> Blueprint:
    hidden = config.size("hidden_size")
    reach = windows(config, len(parts), kinds)
    dense = any(not any(each.routed for each in linears) for linears, _ in parts)
    ffn = config.size("intermediate_size") if dense else 0
    widths = {mixture.field: mixture.width, "shared_expert_intermediate_size": shared, "intermediate_size": ffn}
    if mixture.field == "intermediate_size":
        widths["intermediate_size"] = mixture.width
    return Blueprint(
        layers=tuple(
            Layer(linears, other, of.kv_numbers, of.flops, window)
            for (linears, other), window in zip(parts, reach, strict=True)
        ),
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=max(mixture.width * mixture.per_token + shared, ffn),
        vocab_size=config.size("vocab_size"),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=final_norm or hidden,
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.longest(),
        head_bias=head_bias,
        experts=mixture.total,
        experts_per_token=mixture.per_token,
        tensor_widths=tuple((field, width) for field, width in widths.items() if width),
    )
