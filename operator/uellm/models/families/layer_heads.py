"""Heads that differ from layer to layer, and what a config says of gates and sinks behind them.

Fields: a number for each layer (Laguna), those of layers with a window under names of their own (MiMo V2), a section
for the layers of one kind (Step 3.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from uellm.errors import BadInput
from uellm.models.families import names
from uellm.models.families.parts import FULL, SLIDING, Heads
from uellm.models.families.traits import Traits
from uellm.models.fields import Config
from uellm.models.shown import shown

PER_LAYER = "num_attention_heads_per_layer"
OTHER = "attention_other_setting"
PER_HEAD, PER_NUMBER = (True, "per-head", "per_head"), ("per-element", "per_element")


def heads_at(config: Config, plain: Heads, index: int, kind: str) -> Heads:
    """The heads of a layer. `plain`: those of the model; `kind`: how the layer attends."""
    found = plain
    if kind == SLIDING:
        found = Heads(
            config.size("swa_num_attention_heads", "num_sliding_attention_heads", default=plain.query),
            config.size("swa_num_key_value_heads", default=plain.kv),
            config.size("swa_head_dim", default=plain.width),
            config.size("swa_v_head_dim", "swa_head_dim", default=plain.value),
        )
    other = config.value(OTHER)
    if isinstance(other, Mapping) and other.get("attention_type") == kind:
        inner = Config(other, f"{config.prefix}.{OTHER}")
        width = inner.size(*names.HEAD_WIDTH, default=plain.width)
        query, kv = inner.size(*names.HEADS, default=plain.query), inner.size(*names.KV_HEADS, default=plain.kv)
        found = Heads(query, kv, width)
    listed = config.value(PER_LAYER)
    if isinstance(listed, list | tuple):
        if not index < len(listed):
            raise BadInput(
                f"{config.prefix}.{PER_LAYER}", f"has {len(listed)} entries, which are fewer than the layers"
            )
        found = replace(found, query=config.whole(PER_LAYER, listed[index]))
    if found.query % found.kv:
        raise BadInput(f"{config.prefix}.{names.KV_HEADS[0]}", f"{found.kv} does not divide the {found.query} heads")
    return found


def has_sinks(config: Config, kind: str) -> bool:
    """Whether attention may fall back on a number a head in the layers of a kind."""
    field = {SLIDING: "add_swa_attention_sink_bias", FULL: "add_full_attention_sink_bias"}.get(kind)
    return field is not None and config.flag(field, default=False)


def gates_of(config: Config, traits: Traits, of: Heads) -> int:
    """The gates behind the heads: one for each, or one for each of their numbers."""
    value = config.value(traits.head_gate) if traits.head_gate else None
    if value in PER_HEAD:
        return of.query
    if value in PER_NUMBER:
        return of.query * of.width
    if value:
        raise BadInput(
            f"{config.prefix}.{traits.head_gate}", f"must be true, false, per-head or per-element, not {shown(value)}"
        )
    return 0
