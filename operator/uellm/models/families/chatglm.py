"""ChatGLM2, ChatGLM3 and GLM-4 9B, with the field names of their own configuration."""

from __future__ import annotations

from uellm.errors import BadInput
from uellm.models.families.parts import Heads, even_width
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix


def chatglm(config: Config) -> Blueprint:
    """ChatGLM2 and 3: KV heads in `multi_query_group_num` groups, gate and up in one matrix."""
    hidden, ffn = config.size("hidden_size"), config.size("ffn_hidden_size")
    of = _heads(config, hidden)
    bias = config.flag("add_bias_linear", default=False)
    qkv_bias = bias or config.flag("add_qkv_bias", default=False)
    norm = hidden if config.flag("rmsnorm", default=True) else 2 * hidden
    linears = (
        WeightMatrix("self_attention.query_key_value", (of.query + 2 * of.kv) * of.width, hidden, qkv_bias),
        WeightMatrix("self_attention.dense", hidden, of.query * of.width, bias),
        WeightMatrix("mlp.dense_h_to_4h", 2 * ffn, hidden, bias),
        WeightMatrix("mlp.dense_4h_to_h", hidden, ffn, bias),
    )
    layers = config.layers("num_layers", "num_hidden_layers")
    return Blueprint(
        layers=(Layer(linears, 2 * norm, of.kv_numbers, of.flops),) * layers,
        layer_path="transformer.encoder.layers",
        hidden_size=hidden,
        intermediate_size=ffn,
        vocab_size=config.size("padded_vocab_size", "vocab_size"),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=norm * config.flag("post_layer_norm", default=True),
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.longest(),
        tensor_widths=(("ffn_hidden_size", ffn),),
    )


def _heads(config: Config, hidden: int) -> Heads:
    query = config.size("num_attention_heads")
    grouped = config.flag("multi_query_attention", default=False)
    kv = config.size("multi_query_group_num") if grouped else query
    if query % kv:
        raise BadInput(f"{config.prefix}.multi_query_group_num", f"{kv} does not divide num_attention_heads {query}")
    width = config.size("kv_channels", default=0) or even_width(config, hidden, query)
    return Heads(query, kv, width)
