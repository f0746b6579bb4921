"""DeepSeek V4: one KV head over compressed tokens, grouped output projections, hyper-connections.

Source: vllm/models/deepseek_v4 (attention.py, compressor.py, model.py).
"""

from __future__ import annotations

from uellm.errors import BadInput
from uellm.models.families import feed_forward
from uellm.models.families.part import LayerPart
from uellm.models.families.traits import Traits
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, RecentCache, WeightMatrix

INDEXED = 4  # layers that compress this many tokens into one overlap them, and choose among them with an indexer
KEPT_BYTES = 584  # of a token in the cache: 448 numbers in FP8, 64 in 16 bits, 8 bytes of scales
FLOAT32_BYTES = 4
INDEX_BYTES = 132  # of a token in the indexer's cache: 128 numbers in FP8 and a scale
TRAITS = Traits(mlp_bias=False, corrected=True)


def deepseek_v4(config: Config) -> Blueprint:
    """DeepSeek V4 Flash and Pro."""
    hidden, layers = config.size("hidden_size"), config.layers()
    heads, width = config.size("num_attention_heads"), config.size("head_dim")
    mixture = feed_forward.experts_of(config)
    if mixture is None:
        raise BadInput(f"{config.prefix}.n_routed_experts", "is missing; give it as the model's config.json has it")
    ratios = _ratios(config, layers)
    sparse = feed_forward.mixture(config, TRAITS, hidden, mixture)
    hashed = config.count("num_hash_layers")
    built = []
    for index, ratio in enumerate(ratios):
        part = attention(config, hidden, heads, width) + _compressed(config, hidden, width, ratio)
        part += sparse + feed_forward.hyper_connections(config, hidden)
        table = config.size("vocab_size") * mixture.per_token if index < hashed else 0
        built.append(
            Layer(
                part.linears,
                part.other + 2 * hidden,
                0,
                part.attention_flops,
                config.size("sliding_window") if ratio <= 1 else None,
                part.float32 + table,
                index_bytes=KEPT_BYTES if ratio <= 1 else part.index_bytes,
                recent=_recent(config, width, ratio),
            )
        )
    copies = config.size("hc_mult")
    return Blueprint(
        layers=tuple(built),
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=mixture.width * mixture.per_token + feed_forward.shared_width(config, mixture),
        vocab_size=config.size("vocab_size"),
        attention_heads=heads,
        kv_heads=1,
        head_dim=width,
        final_norm=hidden + copies * (copies * hidden + 1) + 1,
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.longest(),
        experts=mixture.total,
        experts_per_token=mixture.per_token,
        kv_shared_by_tensor=False,
        sparse_latent=True,
        predicting=config.count("num_nextn_predict_layers"),
        tensor_widths=((mixture.field, mixture.width), ("o_groups", config.size("o_groups"))),
        notes=("layers for multi-token prediction are not counted without speculation",)
        if config.count("num_nextn_predict_layers")
        else (),
    )


def _ratios(config: Config, layers: int) -> list[int]:
    """[L]: the tokens that a layer compresses into one; 0: none."""
    listed = config.value("compress_ratios")
    if isinstance(listed, list | tuple) and len(listed) >= layers:
        if all(type(each) is int and each >= 0 for each in listed):
            return list(listed[:layers])
        raise BadInput(f"{config.prefix}.compress_ratios", "must be a list of whole numbers, 0 or more")
    kinds, rates = config.list_of("layer_types", layers), config.value("compress_rates")
    rates = (
        rates if isinstance(rates, dict) else {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
    )
    if kinds is not None:
        return [rate if type(rate := rates.get(str(kind), 0)) is int else 0 for kind in kinds]
    # transformers' pattern: two layers with a window, then both kinds of compression in turn.
    return [0 if index < 2 else (4 if index % 2 == 0 else 128) for index in range(layers)]


def attention(config: Config, hidden: int, heads: int, width: int) -> LayerPart:
    """One KV head, and output projections by groups of heads."""
    low, groups, out = config.size("q_lora_rank"), config.size("o_groups"), config.size("o_lora_rank")
    if heads % groups:
        raise BadInput(f"{config.prefix}.o_groups", f"{groups} does not divide num_attention_heads {heads}")
    linears = (
        WeightMatrix("attn.wq_a", low, hidden),
        WeightMatrix("attn.wkv", width, hidden),
        WeightMatrix("attn.wq_b", heads * width, low),
        WeightMatrix("attn.wo_a", groups * out, heads * width // groups),
        WeightMatrix("attn.wo_b", hidden, groups * out),
    )
    return LayerPart(linears, other=low + width, float32=heads, attention_flops=4.0 * heads * width)


def _compressed(config: Config, hidden: int, width: int, ratio: int) -> LayerPart:
    """The compressor of a layer's keys, and the indexer with one of its own."""
    if ratio <= 1:
        return LayerPart()
    part = _compressor("attn.compressor", hidden, width, ratio)
    flops = 4.0 * config.size("num_attention_heads") * width
    part += LayerPart(index_bytes=-(-KEPT_BYTES // ratio), attention_flops=flops / ratio - flops)
    if ratio != INDEXED:
        return part
    count, narrow = config.size("index_n_heads"), config.size("index_head_dim")
    linears = (
        WeightMatrix("attn.indexer.wq_b", count * narrow, config.size("q_lora_rank")),
        WeightMatrix("attn.indexer.weights_proj", count, hidden, quantizable=False),
    )
    part += LayerPart(linears, index_bytes=-(-INDEX_BYTES // ratio), attention_flops=2.0 * count * narrow / ratio)
    return part + _compressor("attn.indexer.compressor", hidden, narrow, ratio)


def _recent(config: Config, width: int, ratio: int) -> tuple[RecentCache, ...]:
    """What a layer with compressed tokens keeps of the last ones: its window, and what its compressors still read."""
    if ratio <= 1:
        return ()
    window = RecentCache(KEPT_BYTES, config.size("sliding_window"))
    overlapping = 2 if ratio == INDEXED else 1
    read = width + (config.size("index_head_dim") if ratio == INDEXED else 0)
    # A value and a score of each number, in 32 bits.
    return window, RecentCache(2 * overlapping * read * FLOAT32_BYTES, overlapping * ratio)


def _compressor(path: str, hidden: int, width: int, ratio: int) -> LayerPart:
    wide = width * (2 if ratio == INDEXED else 1)
    return LayerPart(
        (WeightMatrix(f"{path}.wkv_gate", 2 * wide, hidden, quantizable=False),), other=width, float32=ratio * wide
    )
