"""Puts the layers of a decoder together from the vocabulary of its config and the traits of its family."""

from __future__ import annotations

import math
from dataclasses import replace

from uellm.models.families import attention, feed_forward, names, recurrent
from uellm.models.families.layer_heads import has_sinks, heads_at
from uellm.models.families.part import LayerPart
from uellm.models.families.parts import CHUNKED, FULL, SLIDING, Experts, Heads, window
from uellm.models.families.pattern import (
    CONVOLUTION,
    DENSE,
    HYBRID,
    LINEAR,
    MAMBA,
    NO_MLP,
    NOTHING,
    SPARSE,
    LayerPlan,
    layer_count,
    layer_kinds,
)
from uellm.models.families.traits import Traits
from uellm.models.fields import PREDICTING, Config
from uellm.models.weights import Blueprint, Layer

ATTENDING = (FULL, SLIDING, CHUNKED, HYBRID)


def read_decoder(config: Config, traits: Traits, *, head: bool = True, classes: int = 0) -> Blueprint:
    """The blueprint of a decoder. `head`: whether it has an LM head; `classes`: rows of a classifier's head."""
    hidden, layers = config.size(*names.HIDDEN), layer_count(config)
    mixture = feed_forward.experts_of(config)
    kinds = layer_kinds(config, traits, layers, experts=mixture is not None)
    mixture = mixture if any(kind.mlp == SPARSE for kind in kinds) else None
    built = tuple(_layer(config, traits, hidden, kind, mixture, index) for index, kind in enumerate(kinds))
    latent = attention.is_latent(config)
    of = _heads(config, hidden, kinds, latent=latent and not traits.latent_expanded)
    norm = _norm(traits, hidden)
    tied = config.flag("tie_word_embeddings", default=traits.tied)
    vocabulary = config.size(*names.VOCABULARY)
    positions = config.size(*traits.positions, default=0) + traits.position_offset if traits.positions else 0
    tables = positions + sum(config.count(name) for name in traits.other_embedding)
    return Blueprint(
        layers=tuple(layer for layer, _ in built),
        layer_path=traits.layer_path,
        hidden_size=hidden,
        intermediate_size=max((width for _, width in built), default=0) or hidden,
        vocab_size=vocabulary,
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=norm * traits.final_norm + _last_connection(config, traits, hidden),
        tied=tied and head,
        max_position_embeddings=config.longest(),
        embedding_width=_embedding_width(config, hidden),
        other_embedding=tables * hidden + norm * traits.embedding_norm,
        head_bias=traits.head_bias and head,
        classifier=_classifier(traits, hidden, classes),
        has_head=head,
        unloaded=(hidden * hidden + hidden) * (traits.pooler and not head and not classes),
        experts=mixture.total if mixture else 0,
        experts_per_token=mixture.per_token if mixture else 0,
        kv_shared_by_tensor=not latent or traits.latent_expanded,
        tensor_widths=_widths(config, traits, hidden, kinds, mixture),
        predicting=_predicting(config),
        sparse_latent=attention.is_sparse_latent(config),
        notes=_notes(config, traits),
    )


def _layer(
    config: Config, traits: Traits, hidden: int, kind: LayerPlan, of: Experts | None, index: int
) -> tuple[Layer, int]:
    """A layer, and the width of its MLP."""
    part = _mixer(config, traits, hidden, kind.mixer, index)
    if kind.mlp == SPARSE and of:
        part += feed_forward.mixture(config, traits, hidden, of)
    elif kind.mlp in (DENSE, SPARSE):
        part += feed_forward.dense(config, traits, hidden, feed_forward.dense_width(config, traits, hidden, index))
    if config.value("hc_mult"):
        part += feed_forward.hyper_connections(config, hidden, independent=traits.independent_connections)
    alone = kind.mlp == NO_MLP or kind.mixer == NOTHING
    norms = 1 if alone else traits.norms
    reach = {SLIDING: window(config), CHUNKED: window(config, "attention_chunk_size")}.get(kind.mixer)
    reach = reach + traits.window_more if reach else None
    layer = Layer(
        part.linears,
        part.other + norms * _norm(traits, hidden),
        part.kv_numbers,
        part.attention_flops,
        reach,
        part.float32,
        state_numbers=part.state_numbers,
        state_float32=part.state_float32,
        index_bytes=part.index_bytes,
    )
    return layer, part.width


def _mixer(config: Config, traits: Traits, hidden: int, kind: str, index: int) -> LayerPart:
    if kind == NOTHING:
        return LayerPart()
    if kind == CONVOLUTION:
        return recurrent.short_convolution(config, hidden)
    if kind == LINEAR:
        return _linear(config, hidden)
    if kind == MAMBA:
        return _mamba(config, traits, hidden)
    part = (
        attention.latent(config, traits, hidden, indexed=attention.has_indexer(config, index))
        if attention.is_latent(config)
        else attention.grouped(
            config, traits, hidden, _heads_at(config, hidden, index, kind), sinks=has_sinks(config, kind)
        )
        + attention.block_indexer(config, hidden, index)
    )
    return part + _mamba(config, traits, hidden) if kind == HYBRID else part


def _heads_at(config: Config, hidden: int, index: int, kind: str) -> Heads:
    return heads_at(config, attention.heads_of(config, hidden), index, kind)


def _linear(config: Config, hidden: int) -> LayerPart:
    if config.value("linear_num_value_heads"):
        return recurrent.delta_net(config, hidden)
    if config.value("linear_attn_config") or config.value("linear_num_heads"):
        return recurrent.kimi_delta(config, hidden)
    of = attention.heads_of(config, hidden)
    return recurrent.lightning(config, hidden, of.query, of.width)


def _is_mamba2(config: Config) -> bool:
    return any(config.value(name) for name in names.STATE_HEADS[:3]) or bool(config.value("n_groups"))


def _mamba(config: Config, traits: Traits, hidden: int) -> LayerPart:
    if _is_mamba2(config):
        return recurrent.mamba2(config, hidden, norm=config.value("mamba_rms_norm") is not False)
    # Jamba's layers have an MLP behind them; Mamba alone has no norms inside.
    return recurrent.mamba1(config, hidden, norms=not traits.without_mlp)


def _heads(config: Config, hidden: int, kinds: list[LayerPlan], *, latent: bool) -> Heads:
    if latent:
        width = config.size("kv_lora_rank") + config.count("qk_rope_head_dim")
        return Heads(config.size(*names.HEADS), 1, width)
    if any(kind.mixer in ATTENDING for kind in kinds):
        return replace(
            attention.heads_of(config, hidden), kv=min(each.kv for each in _all_heads(config, hidden, kinds))
        )
    heads = config.size(*names.STATE_HEADS, default=1)
    return Heads(heads, heads, 1)


def _all_heads(config: Config, hidden: int, kinds: list[LayerPlan]) -> list[Heads]:
    """Those of the layers that attend."""
    attending = [(index, kind.mixer) for index, kind in enumerate(kinds) if kind.mixer in ATTENDING]
    return [_heads_at(config, hidden, index, kind) for index, kind in attending]


def _classifier(traits: Traits, hidden: int, classes: int) -> int:
    """Numbers of a classifier's head; encoders have a dense layer before it, and biases."""
    return classes * hidden + (hidden * hidden + hidden + classes) * (traits.encoder and classes > 0)


def _embedding_width(config: Config, hidden: int) -> int:
    """The width of a narrower embedding; 0: that of the layers. Molmo's embedding_size is a number of rows."""
    width = config.count("embedding_size")
    return width if width < hidden else 0


def _norm(traits: Traits, hidden: int) -> int:
    return hidden * traits.norm_weight * (2 if traits.layer_norm else 1)


def _widths(
    config: Config, traits: Traits, hidden: int, kinds: list[LayerPlan], of: Experts | None
) -> tuple[tuple[str, int], ...]:
    """The widths that tensor parallelism divides."""
    found: dict[str, int] = {}
    for index, kind in enumerate(kinds):
        if kind.mlp == SPARSE and of:
            found.setdefault(of.field, of.width)
        elif kind.mlp in (DENSE, SPARSE):
            width = feed_forward.dense_width(config, traits, hidden, index)
            found.setdefault("intermediate_size", width)
    counts = {each.query for each in _all_heads(config, hidden, kinds)} if not attention.is_latent(config) else set()
    if len(counts) > 1:
        found["heads of every layer"] = math.gcd(*counts)
    mixers = {kind.mixer for kind in kinds}
    if LINEAR in mixers:
        found |= recurrent.linear_widths(config)
    if mixers & {MAMBA, HYBRID} and _is_mamba2(config):
        found |= recurrent.mamba2_widths(config)
    return tuple(found.items())


def _last_connection(config: Config, traits: Traits, hidden: int) -> int:
    """Behind the last layer the copies of the hidden state become one."""
    copies = config.count("hc_mult")
    return copies * (copies * hidden + 1) + 1 if copies and traits.independent_connections else 0


def _predicting(config: Config) -> int:
    """Layers for multi-token prediction."""
    return next((config.count(name) for name in PREDICTING if config.fields.get(name)), 0)


def _notes(config: Config, traits: Traits) -> tuple[str, ...]:
    extra = _predicting(config)
    notes: tuple[str, ...] = (traits.note,) if traits.note else ()
    if extra:
        notes += (f"{extra} layer(s) for multi-token prediction are not counted without speculation",)
    return notes
