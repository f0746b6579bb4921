"""DeepSeek V4.1: layers that share the compressed keys of an earlier one, and tables of n-grams in host memory.

Source: vllm/models/deepseek_v41 (attention.py, compressor.py, common/engram.py, nvidia/model.py). Otherwise its layers
are V4's. A layer whose ratio is 0 has a window alone. The sources of keys have a compressor and its cache, those of
indices an indexer; the layers behind one use what it has found.
"""

from __future__ import annotations

from typing import NamedTuple

from uellm.errors import BadInput
from uellm.models.families import deepseek_v4, feed_forward
from uellm.models.families.part import LayerPart
from uellm.models.families.parts import Experts
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, RecentCache, WeightMatrix

RATIOS = (0, 1, 2)  # other ones are refused by the engine
KEY_SOURCES, INDEX_SOURCES = "kv_source_layer_ids", "index_source_layer_ids"
RING_TOKENS = 8  # of the group that is still being compressed


class _Place(NamedTuple):
    """What the config's lists say of one layer."""

    ratio: int
    tabled: bool
    """It looks rows up in a table of n-grams."""
    keys: bool
    """Other layers use its compressed keys."""
    indices: bool
    """Other layers use what its indexer picks."""


def deepseek_v41(config: Config) -> Blueprint:
    """DeepSeek V4.1."""
    hidden, layers = config.size("hidden_size"), config.layers()
    heads, width = config.size("num_attention_heads"), config.size("head_dim")
    mixture = feed_forward.experts_of(config)
    if mixture is None:
        raise BadInput(f"{config.prefix}.n_routed_experts", "is missing; give it as the model's config.json has it")
    tables = _tables(config, layers)
    keys, indices = (config.indices(name, layers) or frozenset() for name in (KEY_SOURCES, INDEX_SOURCES))
    built = tuple(
        _layer(config, hidden, width, mixture, _Place(ratio, index in tables, index in keys, index in indices))
        for index, ratio in enumerate(_ratios(config, layers, keys, indices))
    )
    columns = config.size("engram_head_dim") if tables else 0
    return Blueprint(
        layers=built,
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=mixture.width * mixture.per_token + feed_forward.shared_width(config, mixture),
        vocab_size=config.size("vocab_size"),
        attention_heads=heads,
        kv_heads=1,
        head_dim=width,
        final_norm=hidden,
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.longest(),
        experts=mixture.total,
        experts_per_token=mixture.per_token,
        kv_shared_by_tensor=False,
        sparse_latent=True,
        predicting=config.count("num_nextn_predict_layers"),
        undivided=True,
        host_table=sum(tables.values()) * columns,
        tensor_widths=((mixture.field, mixture.width), ("o_groups", config.size("o_groups"))),
        notes=_notes(config, tables),
    )


def _notes(config: Config, tables: dict[int, int]) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if tables:
        notes += ("tables of n-grams are kept in host memory, as vLLM does unless it is told otherwise",)
    if config.count("num_nextn_predict_layers"):
        notes += ("layers for multi-token prediction are not counted without speculation",)
    return notes


def _ratios(config: Config, layers: int, keys: frozenset[int], indices: frozenset[int]) -> list[int]:
    """[L]: how many tokens a layer's keys stand for; 0: it has a window alone."""
    listed = config.value("compress_ratios")
    known = isinstance(listed, list | tuple) and all(type(each) is int and each in RATIOS for each in listed)
    if not known or not isinstance(listed, list | tuple):
        raise BadInput(f"{config.prefix}.compress_ratios", f"must be a list of {', '.join(map(str, RATIOS))}")
    ratios = [*listed[:layers], *[0] * (layers - len(listed))]
    first = next((index for index, ratio in enumerate(ratios) if ratio), layers)
    for name, sources in ((KEY_SOURCES, keys), (INDEX_SOURCES, indices)):
        if first < layers and not any(each <= first for each in sources):
            raise BadInput(f"{config.prefix}.{name}", f"names no layer for layer {first}, which compresses")
    return ratios


def _tables(config: Config, layers: int) -> dict[int, int]:
    """Rows of the table of n-grams, by layer."""
    numbers, rows = config.value("engram_layer_ids") or (), config.value("engram_num_embeddings") or ()
    if not isinstance(numbers, list | tuple) or not isinstance(rows, list | tuple) or len(numbers) != len(rows):
        raise BadInput(
            f"{config.prefix}.engram_num_embeddings", "must be a list with an entry for each layer of n-grams"
        )
    config.indices("engram_layer_ids", layers)
    return {number: config.whole("engram_num_embeddings", each) for number, each in zip(numbers, rows, strict=True)}


def _layer(config: Config, hidden: int, width: int, of: Experts, place: _Place) -> Layer:
    ratio = place.ratio
    count = config.size("num_attention_heads")
    part = deepseek_v4.attention(config, hidden, count, width)
    part += feed_forward.mixture(config, deepseek_v4.TRAITS, hidden, of)
    part += feed_forward.hyper_connections(config, hidden)
    source = _source(config, hidden, width, place)
    part += source
    if place.tabled:
        part += _lookup(config, hidden)
    window = config.size("sliding_window")
    near = RecentCache(deepseek_v4.KEPT_BYTES, window)
    if source.linears:
        return _built(part, hidden, part.attention_flops / ratio, None, part.index_bytes, (near,))
    # Beyond its window it attends to as many compressed tokens as an indexer picks.
    reach = 1 + (config.count("index_topk") / window if ratio else 0)
    return _built(part, hidden, part.attention_flops * reach, window, deepseek_v4.KEPT_BYTES, ())


def _built(
    part: LayerPart, hidden: int, flops: float, window: int | None, kept: int, recent: tuple[RecentCache, ...]
) -> Layer:
    return Layer(
        part.linears,
        part.other + 2 * hidden,
        0,
        flops,
        window,
        part.float32,
        state_float32=part.state_float32,
        index_bytes=kept,
        recent=recent,
    )


def _source(config: Config, hidden: int, width: int, place: _Place) -> LayerPart:
    """The compressor and the indexer of a layer that other ones use as well."""
    ratio, part = place.ratio, LayerPart()
    if not ratio:
        return part
    if place.keys:
        wide = width * (2 if ratio > 1 else 1)  # with a gate where it pools tokens
        compressor = WeightMatrix("attn.compressor.wkv_gate", wide, hidden, quantizable=False)
        ring = 2 * width * RING_TOKENS if ratio > 1 else 0
        kept = -(-deepseek_v4.KEPT_BYTES // ratio)
        part += LayerPart((compressor,), other=width, index_bytes=kept, state_float32=ring)
    if not place.indices:
        return part
    count, narrow = config.size("index_n_heads"), config.size("index_head_dim")
    part += LayerPart(
        (
            WeightMatrix("attn.indexer.wq_b", count * narrow, config.size("q_lora_rank")),
            WeightMatrix("attn.indexer.weights_proj", count, hidden, quantizable=False),
        ),
        attention_flops=2.0 * count * narrow,
    )
    if not place.keys:
        return part
    key = WeightMatrix("attn.indexer.wk", narrow, width, quantizable=False)
    return part + LayerPart((key,), other=narrow, index_bytes=-(-deepseek_v4.INDEX_BYTES // ratio))


def _lookup(config: Config, hidden: int) -> LayerPart:
    """What a layer does with the rows that it finds in its table of n-grams."""
    copies = config.size("hc_mult")
    found = (config.size("engram_max_ngram_size") - 1) * config.size("engram_n_heads") * config.size("engram_head_dim")
    return LayerPart((WeightMatrix("engram.wkv", (copies + 1) * hidden, found),), other=2 * copies * hidden)
