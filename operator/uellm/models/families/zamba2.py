"""Zamba2: layers of Mamba 2, some with a transformer block before them that the others of its kind share.

Source: transformers' and vLLM's zamba2.py. The block attends to the hidden state and the token's embedding side by
side. Each use of it has low-rank adapters of its own, a projection into the layer, and a KV cache. The first use of a
block has its weights here, and the adapters of all its uses, as in the engine, which keeps all layers on one stage.
"""

from __future__ import annotations

from uellm.errors import BadInput
from uellm.models.families import names, recurrent
from uellm.models.families.part import LayerPart
from uellm.models.families.parts import Heads, attention, even_width
from uellm.models.families.pattern import HYBRID, layer_count, layer_kinds
from uellm.models.families.traits import Traits
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix

# What transformers assumes without a list of kinds: the layers with a block.
HYBRID_LAYERS = (6, 12, 18, 24, 30, 36, 42, 47, 51)
TRAITS = Traits(without_mlp=True)


def zamba2(config: Config) -> Blueprint:
    """Zamba2."""
    hidden, layers = config.size("hidden_size"), layer_count(config)
    of, width = _heads(config, hidden), config.count("intermediate_size") or 4 * hidden
    hybrid, blocks = _hybrid_layers(config, layers), config.size("num_mem_blocks")
    mamba = recurrent.mamba2(config, hidden, expands=True) + LayerPart(other=hidden)
    block = LayerPart(_block(config, hidden, of, width), other=3 * hidden, width=width)
    projection = (WeightMatrix("linear", hidden, hidden),)
    use = LayerPart(projection, kv_numbers=of.kv_numbers, attention_flops=of.flops)
    built = []
    for index in range(layers):
        part, shared = mamba, tuple[WeightMatrix, ...]()
        if index in hybrid:
            turn = hybrid.index(index)
            uses = len(hybrid[turn % blocks :: blocks])
            if turn < blocks:
                part += use + block + LayerPart(_adapters(config, hidden, of, width, uses))
            else:
                part, shared = part + use, block.linears + _adapters(config, hidden, of, width, 1)
        built.append(_layer(part, shared))
    return Blueprint(
        layers=tuple(built),
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=width,
        vocab_size=config.size(*names.VOCABULARY),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=hidden,
        tied=True,
        max_position_embeddings=config.longest(),
        tensor_widths=(("intermediate_size", width), *recurrent.mamba2_widths(config).items()),
    )


def _layer(part: LayerPart, shared: tuple[WeightMatrix, ...]) -> Layer:
    return Layer(
        part.linears,
        part.other,
        part.kv_numbers,
        part.attention_flops,
        None,
        part.float32,
        state_numbers=part.state_numbers,
        state_float32=part.state_float32,
        shared=shared,
    )


def _heads(config: Config, hidden: int) -> Heads:
    """As many keys and values as queries, over twice the hidden size."""
    query = config.size("num_attention_heads")
    return Heads(query, query, even_width(config, 2 * hidden, query))


def _hybrid_layers(config: Config, layers: int) -> list[int]:
    """The layers with a block."""
    listed = config.indices("hybrid_layer_ids", layers)
    if listed is not None:
        return sorted(listed)
    if config.value("layers_block_type"):
        kinds = layer_kinds(config, TRAITS, layers, experts=False)
        return [index for index, kind in enumerate(kinds) if kind.mixer == HYBRID]
    if HYBRID_LAYERS[-1] >= layers:
        raise BadInput(f"{config.prefix}.layers_block_type", "is missing; give it as the model's config.json has it")
    return list(HYBRID_LAYERS)


def _block(config: Config, hidden: int, of: Heads, width: int) -> tuple[WeightMatrix, ...]:
    """The matrices that the uses of a block share."""
    bias, inner = config.flag("add_bias_linear", default=False), of.query * of.width
    path = "shared_transformer.self_attn"
    *inputs, output = attention(inner, of, path=path)
    return (
        *inputs,
        WeightMatrix(output.name, hidden, inner),
        WeightMatrix("shared_transformer.feed_forward.gate_up_proj", 2 * width, hidden, bias),
        WeightMatrix("shared_transformer.feed_forward.down_proj", hidden, width, bias),
    )


def _adapters(config: Config, hidden: int, of: Heads, width: int, uses: int) -> tuple[WeightMatrix, ...]:
    """The adapters of a block, two matrices each, for all its uses; a token passes one of them in each."""
    rank, inner = config.size("adapter_rank"), of.query * of.width
    adapted = [("feed_forward.gate_up_proj_adapter_list", hidden, 2 * width)]
    if config.flag("use_shared_attention_adapter", default=False):
        adapted += [(f"self_attn.linear_{name}_adapter_list", inner, inner) for name in "qkv"]
    found: list[WeightMatrix] = []
    for name, inputs, outputs in adapted:
        found.append(WeightMatrix(f"shared_transformer.{name}.0", rank, inputs, copies=uses))
        found.append(WeightMatrix(f"shared_transformer.{name}.1", outputs, rank, copies=uses))
    return tuple(found)
