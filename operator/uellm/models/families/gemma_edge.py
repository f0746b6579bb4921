"""Gemma 3n and Gemma 4: embeddings for each layer, the last layers without keys and values of their own."""

from __future__ import annotations

from uellm.errors import BadInput
from uellm.models.families import attention, feed_forward, names
from uellm.models.families.part import LayerPart
from uellm.models.families.parts import FULL, SLIDING, Experts, Heads, expert, gated_mlp, window
from uellm.models.families.pattern import layer_count, layer_kinds
from uellm.models.families.traits import Traits
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix

TRAITS = Traits(norms=4, mlp_bias=False, tied=True, slides=True, window_pattern=6)
EVERY_FIFTH = Traits(norms=4, mlp_bias=False, tied=True, slides=True, window_pattern=5)

GLOBAL_HEADS = {"global_head_dim": 512, "num_global_key_value_heads": 1}  # EmbeddingGemma 2's, where it says nothing


def gemma3n(config: Config) -> Blueprint:
    """Gemma 3n E2B and E4B: AltUp runs several copies of the hidden state, LAuReL adds a low-rank path."""
    hidden, copies, rank = config.size("hidden_size"), config.size("altup_num_inputs"), config.size("laurel_rank")
    altup = LayerPart(
        (
            WeightMatrix("laurel.linear_left", rank, hidden),
            WeightMatrix("laurel.linear_right", hidden, rank),
            WeightMatrix("altup.modality_router", copies, hidden, quantizable=False),
        ),
        other=3 * hidden + copies * copies + copies**3,
    )
    projections = 2 * (copies - 1) * hidden * hidden
    return _edge(config, EVERY_FIFTH, altup, projections)


def gemma4(config: Config) -> Blueprint:
    """Gemma 4: wider heads where a layer attends to everything; experts beside the MLP in the sparse ones."""
    return _edge(config, TRAITS, LayerPart(other=1), 0)


def embedding_gemma2(config: Config) -> Blueprint:
    """EmbeddingGemma 2: Gemma 4's layers without a table for each layer, and a projection to the embedding's width."""
    wide = config
    if not config.value("per_layer_config"):
        wide = Config(config.fields, config.prefix, {**config.defaults, **GLOBAL_HEADS})
    projection = config.size("embedding_dim") * config.size("hidden_size")
    return _edge(wide, TRAITS, LayerPart(), projection)


def _edge(config: Config, traits: Traits, extra: LayerPart, projections: int) -> Blueprint:
    hidden, layers = config.size("hidden_size"), layer_count(config)
    kinds = [kind.mixer for kind in layer_kinds(config, traits, layers, experts=False)]
    shared = config.count("num_kv_shared_layers")
    if shared >= layers:
        raise BadInput(f"{config.prefix}.num_kv_shared_layers", f"must be less than the {layers} layers")
    small = config.count("hidden_size_per_layer_input")
    if small:
        extra += LayerPart(
            (
                WeightMatrix("per_layer_input_gate", small, hidden),
                WeightMatrix("per_layer_projection", hidden, small),
            ),
            other=hidden,
        )
    mixture = _experts(config)
    built: list[Layer] = []
    widest = 0
    for index, kind in enumerate(kinds):
        own = index < layers - shared
        width = feed_forward.dense_width(config, traits, hidden, index)
        width *= 2 if not own and config.flag("use_double_wide_mlp", default=False) else 1
        part = _attention(config, hidden, _heads(config, hidden, index, kind), kind, own=own)
        part += LayerPart(gated_mlp(hidden, width)) + extra + _sparse(hidden, mixture)
        widest = max(widest, width + (mixture.width * mixture.per_token if mixture else 0))
        built.append(
            Layer(
                part.linears,
                part.other + 4 * hidden,
                part.kv_numbers,
                part.attention_flops,
                window(config) if kind == SLIDING else None,
            )
        )
    table = config.count("vocab_size_per_layer_input") * small * layers
    table += layers * small * hidden + small if small else 0
    # Grouping for tensor parallelism follows the layers that slide, which are most.
    of = _heads(config, hidden, 0, kinds[0])
    widths = [("intermediate_size", config.whole("intermediate_size", min(_widths(config, traits, hidden, layers))))]
    if mixture:
        widths.append((mixture.field, mixture.width))
    return Blueprint(
        layers=tuple(built),
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=widest,
        vocab_size=config.size(*names.VOCABULARY),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=hidden,
        tied=config.flag("tie_word_embeddings", default=True),
        max_position_embeddings=config.longest(),
        other_embedding=table + projections,
        experts=mixture.total if mixture else 0,
        experts_per_token=mixture.per_token if mixture else 0,
        tensor_widths=tuple(widths),
    )


def _widths(config: Config, traits: Traits, hidden: int, layers: int) -> list[int]:
    return [feed_forward.dense_width(config, traits, hidden, index) for index in range(layers)]


def _heads(config: Config, hidden: int, index: int, kind: str) -> Heads:
    """The heads of a layer: of its own entry in `per_layer_config`, or the global ones where it attends to all."""
    plain = attention.heads_of(config, hidden)
    width, kv = plain.width, plain.kv
    if kind == FULL:
        width = config.size("global_head_dim", default=width)
        kv = config.size("num_global_key_value_heads", default=kv)
    entries = config.value("per_layer_config")
    own = entries.get(f"{index:02d}", entries.get(str(index))) if isinstance(entries, dict) else None
    if isinstance(own, dict):
        inner = Config(own, f"{config.prefix}.per_layer_config.{index:02d}")
        width, kv = inner.size("head_dim", default=width), inner.size("num_key_value_heads", default=kv)
    return Heads(plain.query, kv, width)


def _attention(config: Config, hidden: int, of: Heads, kind: str, *, own: bool) -> LayerPart:
    """Attention; without keys and values of its own, a layer reads those of an earlier one."""
    bias = config.flag("attention_bias", default=False)
    query, kv = of.query * of.width, of.kv * of.width
    linears = [
        WeightMatrix("self_attn.q_proj", query, hidden, bias),
        WeightMatrix("self_attn.o_proj", hidden, query, bias),
    ]
    if not own:
        return LayerPart(tuple(linears), other=of.width, attention_flops=of.flops)
    linears.append(WeightMatrix("self_attn.k_proj", kv, hidden, bias))
    if not (kind == FULL and config.flag("attention_k_eq_v", default=False)):
        linears.append(WeightMatrix("self_attn.v_proj", kv, hidden, bias))
    return LayerPart(tuple(linears), other=2 * of.width, kv_numbers=2 * kv, attention_flops=of.flops)


def _experts(config: Config) -> Experts | None:
    return feed_forward.experts_of(config) if config.flag("enable_moe_block", default=False) else None


def _sparse(hidden: int, of: Experts | None) -> LayerPart:
    """Experts beside the MLP, with three norms and a router's scales."""
    if of is None:
        return LayerPart()
    linears = (
        WeightMatrix("router.proj", of.total, hidden, quantizable=False),
        expert("experts.0.gate_proj", of.width, hidden, of),
        expert("experts.0.up_proj", of.width, hidden, of),
        expert("experts.0.down_proj", hidden, of.width, of),
    )
    return LayerPart(linears, other=4 * hidden + of.total)
