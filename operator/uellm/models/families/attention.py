"""Softmax attention: grouped-query heads, and latent attention (MLA) with or without an indexer."""

from __future__ import annotations

from collections.abc import Mapping

from uellm.errors import BadInput
from uellm.models.families import names
from uellm.models.families.layer_heads import gates_of
from uellm.models.families.part import LayerPart
from uellm.models.families.parts import Heads, even_width
from uellm.models.families.traits import Traits
from uellm.models.fields import Config
from uellm.models.weights import WeightMatrix

# vllm's DeepseekV32IndexerCache holds 8-bit keys and a float32 scale for every INDEX_BLOCK numbers.
INDEX_BLOCK, INDEX_SCALE_BYTES = 128, 4


def is_latent(config: Config) -> bool:
    """Whether the config describes latent attention."""
    return bool(config.value("kv_lora_rank")) and config.value("qk_rope_head_dim") is not None


def is_sparse_latent(config: Config) -> bool:
    """Whether an indexer picks the tokens that latent attention attends to."""
    return is_latent(config) and bool(config.value("index_topk"))


def heads_of(config: Config, hidden: int) -> Heads:
    """Query heads, KV heads and their width. Raises BadInput where KV heads do not divide query heads."""
    query = config.size(*names.HEADS)
    kv = 1 if config.value("multi_query") is True else config.size(*names.KV_HEADS, default=query)
    if query % kv:
        raise BadInput(f"{config.prefix}.{names.KV_HEADS[0]}", f"{kv} does not divide {names.HEADS[0]} {query}")
    width = next((config.size(name) for name in names.HEAD_WIDTH if config.value(name)), 0)
    width = width or even_width(config, hidden, query)
    return Heads(query, kv, width, config.size("v_head_dim", default=width))


def grouped(
    config: Config, traits: Traits, hidden: int, of: Heads | None = None, *, source: int = 0, sinks: bool = False
) -> LayerPart:
    """Grouped-query attention. `source`: width of the keys' and values' input where it is not the hidden size;
    `sinks`: attention may fall back on a number a head."""
    of = of or heads_of(config, hidden)
    query, kv, inputs = of.query * of.width, of.kv * of.width, source or hidden
    qkv = traits.has(config, traits.qkv_bias)
    gate = query if traits.has(config, traits.output_gate) else 0
    value = of.kv * of.value
    linears = [
        WeightMatrix("self_attn.q_proj", query + gate, inputs, qkv),
        WeightMatrix("self_attn.k_proj", kv, inputs, qkv),
        WeightMatrix("self_attn.v_proj", value, inputs, qkv),
        WeightMatrix("self_attn.o_proj", hidden, of.query * of.value, traits.has(config, traits.output_bias)),
    ]
    gates = gates_of(config, traits, of)
    if gates:
        linears.append(WeightMatrix("self_attn.g_proj", gates, inputs))
    return LayerPart(
        tuple(linears),
        other=_norms(config, traits, of) + of.query * (traits.sinks or sinks),
        kv_numbers=0 if traits.encoder else kv + value,
        attention_flops=of.flops,
    )


def _norms(config: Config, traits: Traits, of: Heads) -> int:
    """Numbers of the norms of queries and keys."""
    switch = traits.query_key_norm_if
    if not traits.query_key_norm or (switch and not config.flag(switch, default=False)):
        return 0
    both = (of.query + of.kv) * of.width
    numbers = {"width": 2 * of.width, "heads": both, "all": both}[traits.query_key_norm]
    return numbers * (2 if traits.layer_norm and traits.query_key_norm == "width" else 1)


def block_indexer(config: Config, hidden: int, index: int) -> LayerPart:
    """MiniMax M3's indexer, which picks blocks of tokens; its keys are kept in 16 bits beside the layer's own."""
    section = config.value("sparse_attention_config")
    if not isinstance(section, Mapping):
        return LayerPart()
    inner = Config(section, f"{config.prefix}.sparse_attention_config")
    where = section.get("sparse_attention_freq") or ()
    if not isinstance(where, list | tuple):
        raise BadInput(f"{inner.prefix}.sparse_attention_freq", "must be a list with an entry for each layer")
    if not index < len(where) or not where[index]:
        return LayerPart()
    count, width = inner.size("sparse_num_index_heads"), inner.size("sparse_index_dim")
    linears = (
        WeightMatrix("self_attn.index_q_proj", count * width, hidden),
        WeightMatrix("self_attn.index_k_proj", width, hidden),
    )
    return LayerPart(linears, other=2 * width, index_bytes=2 * width, attention_flops=2.0 * count * width)


def latent(config: Config, traits: Traits, hidden: int, *, indexed: bool = True) -> LayerPart:
    """Latent attention: the cache holds one latent vector and one rotated key a token, which all heads share."""
    count, rank = config.size(*names.HEADS), config.size("kv_lora_rank")
    rope, nope, value = config.count("qk_rope_head_dim"), config.size("qk_nope_head_dim"), config.size("v_head_dim")
    low, bias = config.count("q_lora_rank"), config.flag("attention_bias", default=False)
    queries = count * (nope + rope)
    if low:
        linears = [
            WeightMatrix("self_attn.q_a_proj", low, hidden, bias),
            WeightMatrix("self_attn.q_b_proj", queries, low),
        ]
    else:
        linears = [WeightMatrix("self_attn.q_proj", queries, hidden)]
    linears += [
        WeightMatrix("self_attn.kv_a_proj_with_mqa", rank + rope, hidden, bias),
        WeightMatrix("self_attn.kv_b_proj", count * (nope + value), rank),
        WeightMatrix("self_attn.o_proj", hidden, count * value, bias),
    ]
    if traits.has(config, traits.output_gate):
        linears.append(WeightMatrix("self_attn.gate_proj", count * value, hidden))
    part = LayerPart(
        tuple(linears),
        other=rank + low + count * traits.sinks,
        # Values are kept as wide as keys.
        kv_numbers=2 * count * (nope + rope) if traits.latent_expanded else rank + rope,
        attention_flops=2.0 * count * (nope + rope + value),
    )
    return part + _indexer(config, hidden, low) if indexed and config.value("index_topk") else part


def has_indexer(config: Config, index: int) -> bool:
    """Whether a layer picks its tokens itself; others take those that an earlier layer has picked."""
    pattern = config.value("index_topk_pattern")
    if isinstance(pattern, str | list | tuple):
        return not index < len(pattern) or pattern[index] not in ("S", "shared")
    kinds = config.value("indexer_types")
    if isinstance(kinds, list | tuple):
        return not index < len(kinds) or kinds[index] != "shared"
    every, first = config.count("index_topk_freq", default=1), config.count("index_skip_topk_offset", default=2)
    return max(index - first + 1, 0) % max(every, 1) == 0


def _indexer(config: Config, hidden: int, low: int) -> LayerPart:
    """DeepSeek's lightning indexer, which picks the tokens that a layer attends to."""
    count, width = config.size("index_n_heads"), config.size("index_head_dim")
    linears = (
        WeightMatrix("self_attn.indexer.wq_b", count * width, low or hidden),
        WeightMatrix("self_attn.indexer.wk", width, hidden),
        WeightMatrix("self_attn.indexer.weights_proj", count, hidden, quantizable=False),
    )
    kept = width + -(-width // INDEX_BLOCK) * INDEX_SCALE_BYTES
    part = LayerPart(linears, other=2 * width, index_bytes=kept, attention_flops=2.0 * count * width)
    return _pooled(config, hidden, width, part) if config.value("index_kpool") else part


def _pooled(config: Config, hidden: int, width: int, indexer: LayerPart) -> LayerPart:
    """GLM-5-Next's indexer, which keeps one key for several tokens."""
    tokens = config.size("index_kpool")
    gate = WeightMatrix("self_attn.indexer.index_kpool_compress_gate", width, hidden, quantizable=False)
    return LayerPart(
        (*indexer.linears, gate),
        other=indexer.other,
        float32=tokens * width,
        index_bytes=-(-indexer.index_bytes // tokens),
        attention_flops=indexer.attention_flops / tokens,
    )
