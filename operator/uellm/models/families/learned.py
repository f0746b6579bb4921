"""OPT and GPT-2: learned positions, LayerNorm with bias, a plain MLP, tied embeddings."""

from __future__ import annotations

from uellm.models.families.parts import Heads, attention, even_width
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix

OPT_POSITION_OFFSET = 2  # OPTLearnedPositionalEmbedding has two rows that no position uses


def opt(config: Config) -> Blueprint:
    """OPT. The 350M model embeds in half the width and has no final norm."""
    hidden, ffn = config.size("hidden_size"), config.size("ffn_dim")
    query, positions = config.size("num_attention_heads"), config.size("max_position_embeddings")
    width = config.size("word_embed_proj_dim", default=hidden)
    of = Heads(query, query, even_width(config, hidden, query))
    bias = config.flag("enable_bias", default=True)
    norm = 2 * hidden * config.flag("layer_norm_elementwise_affine", default=True)
    final = config.flag("do_layer_norm_before", default=True) and not config.flag("_remove_final_layer_norm", False)
    linears = (
        *attention(hidden, of, qkv_bias=bias, output_bias=bias),
        WeightMatrix("fc1", ffn, hidden, bias),
        WeightMatrix("fc2", hidden, ffn, bias),
    )
    projections = 0 if width == hidden else 2 * width * hidden
    return Blueprint(
        layers=(Layer(linears, 2 * norm, of.kv_numbers, of.flops),) * config.layers(),
        layer_path="model.decoder.layers",
        hidden_size=hidden,
        intermediate_size=ffn,
        vocab_size=config.size("vocab_size"),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=norm * final,
        tied=config.flag("tie_word_embeddings", default=True),
        max_position_embeddings=positions,
        embedding_width=width,
        other_embedding=(positions + OPT_POSITION_OFFSET) * hidden + projections,
        tensor_widths=(("ffn_dim", ffn),),
    )


def gpt2(config: Config) -> Blueprint:
    """GPT-2, with its own field names; q, k and v are one matrix."""
    hidden, query = config.size("n_embd", "hidden_size"), config.size("n_head", "num_attention_heads")
    positions = config.size("n_positions", "max_position_embeddings")
    ffn = config.size("n_inner", default=4 * hidden)
    of = Heads(query, query, even_width(config, hidden, query, "n_head"))
    linears = (
        WeightMatrix("attn.c_attn", 3 * hidden, hidden, bias=True),
        WeightMatrix("attn.c_proj", hidden, hidden, bias=True),
        WeightMatrix("mlp.c_fc", ffn, hidden, bias=True),
        WeightMatrix("mlp.c_proj", hidden, ffn, bias=True),
    )
    return Blueprint(
        layers=(Layer(linears, 4 * hidden, of.kv_numbers, of.flops),) * config.layers("n_layer", "num_hidden_layers"),
        layer_path="transformer.h",
        hidden_size=hidden,
        intermediate_size=ffn,
        vocab_size=config.size("vocab_size"),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=2 * hidden,
        tied=config.flag("tie_word_embeddings", default=True),
        max_position_embeddings=positions,
        other_embedding=positions * hidden,
        tensor_widths=(("n_inner", ffn),),
    )
