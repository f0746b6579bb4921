"""Falcon 7B, 40B, 180B, 11B and RefinedWeb models: LayerNorm, attention parallel to the MLP, one or few KV heads."""

from __future__ import annotations

from uellm.errors import BadInput
from uellm.models.families.parts import Heads, even_width
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix


def falcon(config: Config) -> Blueprint:
    """Falcon with the old (`multi_query`) and the new decoder; ALiBi and RoPE have no weights."""
    hidden = config.size("hidden_size")
    of = _heads(config, hidden)
    ffn = config.size("ffn_hidden_size", default=4 * hidden)
    bias = config.flag("bias", default=False)
    linears = (
        WeightMatrix("self_attention.query_key_value", (of.query + 2 * of.kv) * of.width, hidden, bias),
        WeightMatrix("self_attention.dense", hidden, of.query * of.width, bias),
        WeightMatrix("mlp.dense_h_to_4h", ffn, hidden, bias),
        WeightMatrix("mlp.dense_4h_to_h", hidden, ffn, bias),
    )
    layer = Layer(linears, _norms(config) * 2 * hidden, of.kv_numbers, of.flops)
    return Blueprint(
        layers=(layer,) * config.layers("num_hidden_layers", "n_layer"),
        layer_path="transformer.h",
        hidden_size=hidden,
        intermediate_size=ffn,
        vocab_size=config.size("vocab_size"),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=2 * hidden,
        tied=config.flag("tie_word_embeddings", default=True),
        max_position_embeddings=config.longest(),
        tensor_widths=(("ffn_hidden_size", ffn),),
    )


def _heads(config: Config, hidden: int) -> Heads:
    query = config.size("num_attention_heads", "n_head")
    new = config.flag("new_decoder_architecture", default=False)
    single = not new and config.flag("multi_query", default=True)
    kv = 1 if single else config.size("num_kv_heads", "n_head_kv", default=query)
    if query % kv:
        raise BadInput(f"{config.prefix}.num_kv_heads", f"{kv} does not divide num_attention_heads {query}")
    return Heads(query, kv, even_width(config, hidden, query))


def _norms(config: Config) -> int:
    """LayerNorms of a layer: one if attention and MLP share it."""
    if config.flag("new_decoder_architecture", default=False):
        norms = config.size("num_ln_in_parallel_attn", default=2)
        if norms > 2:
            raise BadInput(f"{config.prefix}.num_ln_in_parallel_attn", f"must be 1 or 2, not {norms}")
        return norms
    return 1 if config.flag("parallel_attn", default=True) else 2
