"""Nemotron-NAS (DeciLM): Llama whose layers each have their own heads and widths, or lack attention or MLP.

Source: vllm/model_executor/models/nemotron_nas.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from uellm.errors import BadInput
from uellm.models.families import attention, names
from uellm.models.families.decoder import read_decoder
from uellm.models.families.part import LayerPart
from uellm.models.families.parts import Heads, gated_mlp
from uellm.models.families.traits import Traits
from uellm.models.fields import Config
from uellm.models.shown import shown
from uellm.models.weights import Blueprint, Layer, WeightMatrix

MULTIPLE = 256  # widths are rounded up to it


def deci(config: Config) -> Blueprint:
    """A model with `block_configs`; older ones list the KV heads of each layer and are Llama otherwise."""
    hidden, layers = config.size("hidden_size"), config.layers()
    blocks = config.list_of("block_configs", layers)
    if blocks is None:
        return _listed(config, layers)
    query = config.size("num_attention_heads")
    built, widths, groups = [], [], []
    for index, block in enumerate(blocks):
        where = f"{config.prefix}.block_configs[{index}]"
        mixing, kv = _attention(config, hidden, query, _section(block, "attention", where), f"{where}.attention")
        mlp, width = _mlp(hidden, _section(block, "ffn", where), f"{where}.ffn")
        part = mixing + mlp
        norms = bool(mixing.linears) + bool(mlp.linears)
        built.append(Layer(part.linears, part.other + norms * hidden, part.kv_numbers, part.attention_flops))
        widths += [width] if width else []
        groups += [kv] if kv else []
    return Blueprint(
        layers=tuple(built),
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=max(widths, default=hidden),
        vocab_size=config.size(*names.VOCABULARY),
        attention_heads=query,
        kv_heads=min(groups, default=query),
        head_dim=config.size("head_dim", default=hidden // query or 1),
        final_norm=hidden,
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.longest(),
        tensor_widths=tuple(("ffn_mult", width) for width in sorted(set(widths))),
    )


def _section(block: Any, name: str, where: str) -> Mapping[str, Any]:
    section = block.get(name) if isinstance(block, Mapping) else None
    if not isinstance(section, Mapping):
        raise BadInput(f"{where}.{name}", "must be an object")
    return section


def _attention(
    config: Config, hidden: int, query: int, section: Mapping[str, Any], where: str
) -> tuple[LayerPart, int]:
    if section.get("no_op"):
        return LayerPart(), 0
    if section.get("replace_with_linear"):
        return LayerPart((WeightMatrix("self_attn.linear_attn", hidden, hidden),)), 0
    group = Config(section, where).size("n_heads_in_group")
    if query % group or hidden % query:
        raise BadInput(f"{where}.n_heads_in_group", f"{group} does not divide the {query} heads of the layer")
    of = Heads(query, query // group, config.size("head_dim", default=hidden // query))
    return attention.grouped(config, Traits(), hidden, of), of.kv


def _mlp(hidden: int, section: Mapping[str, Any], where: str) -> tuple[LayerPart, int]:
    if section.get("no_op"):
        return LayerPart(), 0
    if section.get("replace_with_linear"):
        return LayerPart((WeightMatrix("mlp.linear_mlp", hidden, hidden),)), 0
    given = section.get("intermediate_size")
    if given is not None:
        width = Config(section, where).size("intermediate_size")
    else:
        factor = section.get("ffn_mult")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1024:
            raise BadInput(f"{where}.ffn_mult", f"must be a number above 0, not {shown(factor)}")
        width = -(-int(2 * factor * hidden / 3) // MULTIPLE) * MULTIPLE
    return LayerPart(gated_mlp(hidden, width)), width


def _listed(config: Config, layers: int) -> Blueprint:
    """DeciLM 7B: the KV heads of each layer in a list."""
    listed = config.list_of("num_key_value_heads_per_layer", layers)
    if listed is None:
        return read_decoder(config, Traits())
    hidden = config.size("hidden_size")
    plain = Config({**config.fields, "num_key_value_heads": max(listed, default=1)}, config.prefix, config.defaults)
    plan = read_decoder(plain, Traits())
    built = []
    for layer, kv in zip(plan.layers, listed, strict=True):
        of = Heads(plan.attention_heads, config.whole("num_key_value_heads_per_layer", kv), plan.head_dim)
        part = attention.grouped(config, Traits(), hidden, of)
        mlp = tuple(each for each in layer.linears if each.name.startswith("mlp."))
        built.append(replace(layer, linears=part.linears + mlp, kv_numbers=part.kv_numbers))
    return replace(plan, layers=tuple(built), kv_heads=min(listed))
