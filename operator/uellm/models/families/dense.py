"""Llama 1 to 3, Mistral, Ministral, Qwen2, Qwen3, Phi-3 and Phi-4: RMSNorm, grouped-query attention, gated MLP.

Source of the shapes, here and in the other families: the modelling files of `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence

from uellm.models.families.parts import FULL, SLIDING, attention, gated_mlp, heads, windows
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix


def decoder(
    config: Config,
    linears: tuple[WeightMatrix, ...],
    kinds: Sequence[str],
    *,
    norms: int = 2,
    head_norms: bool = False,
    tied: bool = False,
) -> Blueprint:
    """A decoder of equal layers: `norms` over the hidden size in each, `head_norms` over each head's query and key."""
    hidden, ffn = config.size("hidden_size"), config.size("intermediate_size")
    of = heads(config, hidden)
    other = norms * hidden + 2 * of.width * head_norms
    return Blueprint(
        layers=tuple(
            Layer(linears, other, of.kv_numbers, of.flops, window) for window in windows(config, len(kinds), kinds)
        ),
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=ffn,
        vocab_size=config.size("vocab_size"),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=hidden,
        tied=config.flag("tie_word_embeddings", default=tied),
        max_position_embeddings=config.longest(),
        tensor_widths=(("intermediate_size", ffn),),
    )


def linear_maps(
    config: Config, *, qkv_bias: bool, output_bias: bool, mlp_bias: bool = False
) -> tuple[WeightMatrix, ...]:
    """The matrices of a layer of grouped-query attention and a gated MLP."""
    hidden = config.size("hidden_size")
    parts = attention(hidden, heads(config, hidden), qkv_bias=qkv_bias, output_bias=output_bias)
    return parts + gated_mlp(hidden, config.size("intermediate_size"), bias=mlp_bias)


def llama(config: Config) -> Blueprint:
    """Llama 1 to 3; `attention_bias` covers q, k, v and o."""
    bias = config.flag("attention_bias", default=False)
    linears = linear_maps(config, qkv_bias=bias, output_bias=bias, mlp_bias=config.flag("mlp_bias", default=False))
    return decoder(config, linears, [FULL] * config.layers())


def mistral(config: Config) -> Blueprint:
    """Mistral 7B, Nemo, Small and Ministral: Llama without biases. If a window is given, it applies to all layers."""
    return decoder(config, linear_maps(config, qkv_bias=False, output_bias=False), [SLIDING] * config.layers())


def qwen_windows(config: Config) -> list[str]:
    """The windows: if sliding is switched on, it applies from layer `max_window_layers` on."""
    layers = config.layers()
    if not config.flag("use_sliding_window", default=False):
        return [FULL] * layers
    first = config.count("max_window_layers", default=layers)
    return [SLIDING if index >= first else FULL for index in range(layers)]


def qwen2(config: Config) -> Blueprint:
    """Qwen2 and Qwen2.5: Llama with biases only on q, k and v."""
    return decoder(config, linear_maps(config, qkv_bias=True, output_bias=False), qwen_windows(config))


def qwen3(config: Config) -> Blueprint:
    """Qwen3: norms over each head's query and key; `attention_bias` covers q, k, v and o."""
    bias = config.flag("attention_bias", default=False)
    linears = linear_maps(config, qkv_bias=bias, output_bias=bias)
    return decoder(config, linears, qwen_windows(config), head_norms=True)


def phi3(config: Config) -> Blueprint:
    """Phi-3 and Phi-4: Llama with q, k and v in one matrix, and gate and up in one."""
    hidden, ffn = config.size("hidden_size"), config.size("intermediate_size")
    of = heads(config, hidden)
    linears = (
        WeightMatrix("self_attn.qkv_proj", (of.query + 2 * of.kv) * of.width, hidden),
        WeightMatrix("self_attn.o_proj", hidden, of.query * of.width),
        WeightMatrix("mlp.gate_up_proj", 2 * ffn, hidden),
        WeightMatrix("mlp.down_proj", hidden, ffn),
    )
    return decoder(config, linears, [SLIDING] * config.layers())
