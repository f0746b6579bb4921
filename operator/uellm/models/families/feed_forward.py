"""Feed-forward networks: one gated or plain MLP, or experts among which a router chooses."""

from __future__ import annotations

import math
from dataclasses import replace

from uellm.errors import BadInput
from uellm.models.families import names
from uellm.models.families.part import LayerPart
from uellm.models.families.parts import Experts, expert, gated_mlp
from uellm.models.families.traits import Traits
from uellm.models.fields import Config
from uellm.models.shown import shown
from uellm.models.weights import WeightMatrix

SETS = 2
"""ERNIE's experts: for text, and for images."""


def dense(config: Config, traits: Traits, hidden: int, width: int, *, path: str = "mlp") -> LayerPart:
    """One MLP of a width."""
    bias = traits.has(config, traits.mlp_bias)
    if traits.gated:
        return LayerPart(gated_mlp(hidden, width, path=path, bias=bias), width=width)
    linears = (
        WeightMatrix(f"{path}.up_proj", width, hidden, bias),
        WeightMatrix(f"{path}.down_proj", hidden, width, bias),
    )
    return LayerPart(linears, width=width)


def dense_width(config: Config, traits: Traits, hidden: int, index: int) -> int:
    """The width of the MLP of a layer; some configs have one for each layer, or only a multiple of the hidden size."""
    fields = traits.dense_width or names.MLP_WIDTH
    name = next((name for name in fields if config.value(name) is not None), None)
    if name is None:
        return (
            4 * hidden
            if not traits.gated or (config.value("n_embd") or config.value("n_embed"))
            else config.size(*fields)
        )
    value = config.value(name)
    if isinstance(value, list | tuple):
        if not index < len(value):
            raise BadInput(f"{config.prefix}.{name}", f"has {len(value)} entries, which are fewer than the layers")
        return config.whole(name, value[index])
    width = config.size(name) // (2 if traits.half_width else 1)
    return _adjusted(config, width) if config.value("block_auto_adjust_ff_dim") else width


def _adjusted(config: Config, width: int) -> int:
    """LFM2 takes two thirds of the width, times a factor, rounded up."""
    factor = config.value("block_ffn_dim_multiplier")
    width = int(2 * width / 3)
    if factor is not None:
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1024:
            where = f"{config.prefix}.block_ffn_dim_multiplier"
            raise BadInput(where, f"must be a number above 0, not {shown(factor)}")
        width = int(factor * width)
    multiple = config.size("block_multiple_of", default=1)
    return multiple * math.ceil(width / multiple)


def experts_of(config: Config) -> Experts | None:
    """The experts of a layer; None where the model has none. Raises BadInput where a token would use more."""
    name = config.first_of(names.EXPERTS)
    if name is None:
        return None
    listed = config.value(name)
    total = config.whole(name, listed[0]) if isinstance(listed, list | tuple) and listed else config.size(name)
    # Jamba's layers with one expert have a plain MLP, whatever it says of experts for a token.
    alone = config.value("expert_layer_period") is not None
    if total == 1 and (alone or not any(config.value(each) for each in names.EXPERTS_USED)):
        return None
    used = _most(config, config.first_of(names.EXPERTS_USED)) or config.size(*names.EXPERTS_USED)
    field = config.first_of(names.EXPERT_WIDTH) or names.EXPERT_WIDTH[0]
    width, others = _widths(config, field)
    if used > total:
        raise BadInput(f"{config.prefix}.num_experts_per_tok", f"{used} is more than the {total} experts of {name}")
    return Experts(total, used, width, field, others)


def _most(config: Config, name: str | None) -> int:
    """The greatest number of a list with one for each layer (Hunyuan); 0 where there is no such list."""
    listed = config.value(name) if name else None
    return max(config.whole(str(name), each) for each in listed) if isinstance(listed, list | tuple) and listed else 0


def _widths(config: Config, field: str) -> tuple[int, tuple[int, ...]]:
    """The width of an expert, and those of further sets of experts. A list has one for each set, or for each layer."""
    values = config.value(field)
    if not isinstance(values, list | tuple):
        return config.size(field), ()
    if not values:
        raise BadInput(f"{config.prefix}.{field}", "is an empty list")
    if len(values) == SETS and config.value("moe_k") is not None:
        return config.whole(field, values[0]), tuple(config.whole(field, each) for each in values[1:])
    return config.whole(field, values[-1]), ()


def hyper_connections(config: Config, hidden: int, *, independent: bool = False) -> LayerPart:
    """How a layer mixes several copies of the hidden state, before attention and before its MLP or experts.

    `independent`: no copy is mixed with another.
    """
    copies = config.size("hc_mult")
    mixes, scales = (2 * copies, 2) if independent else ((2 + copies) * copies, 3)
    return LayerPart(float32=2 * (mixes * copies * hidden + mixes + scales))


def shared_width(config: Config, of: Experts) -> int:
    """The width of the experts that every token uses; 0: none."""
    name, counted = config.first_of(names.SHARED_WIDTH), config.first_of(names.SHARED_EXPERTS)
    count = _most(config, counted) or (config.count(counted) if counted else 0)
    if name:
        return config.size(name) * (count or 1 if name == names.SHARED_WIDTH[1] else 1)
    return count * of.width


def mixture(config: Config, traits: Traits, hidden: int, of: Experts) -> LayerPart:
    """A router and its experts, and the shared ones beside them."""
    latent = config.count("moe_latent_size")
    inner, bias = latent or hidden, traits.expert_bias
    router = WeightMatrix("mlp.gate", of.total, hidden, traits.router_bias, quantizable=False)
    linears: list[WeightMatrix] = [
        *((router,) if not traits.wide_router else ()),
        expert("mlp.experts.0.up_proj", of.width, inner, of, bias=bias),
        expert("mlp.experts.0.down_proj", inner, of.width, of, bias=bias),
    ]
    if traits.gated_experts and traits.gated:
        linears.append(expert("mlp.experts.0.gate_proj", of.width, inner, of, bias=bias))
    if latent:
        linears.append(WeightMatrix("mlp.fc1_latent_proj", latent, hidden))
        linears.append(WeightMatrix("mlp.fc2_latent_proj", hidden, latent))
    for width in of.others:
        idle = replace(of, per_token=0)
        linears.append(WeightMatrix("mlp.gate", of.total, hidden, traits.router_bias, used=0, quantizable=False))
        linears.append(expert("mlp.experts.0.up_proj", width, inner, idle, bias=bias))
        linears.append(expert("mlp.experts.0.gate_proj", width, inner, idle, bias=bias))
        linears.append(expert("mlp.experts.0.down_proj", inner, width, idle, bias=bias))
    corrected = of.total * traits.has(config, traits.corrected) * (1 + len(of.others))
    wide = of.total * hidden * traits.wide_router
    part = LayerPart(tuple(linears), float32=corrected + wide, width=of.width * of.per_token)
    shared = shared_width(config, of)
    if not shared:
        return part
    # A token passes the shared experts beside the routed ones.
    part = replace(part, width=part.width + shared) + dense(config, traits, hidden, shared, path="mlp.shared_experts")
    if traits.shared_gate:
        part += LayerPart((WeightMatrix("mlp.shared_expert_gate", 1, hidden, quantizable=False),))
    return part
