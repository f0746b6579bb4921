"""Ways of mixing tokens whose state has a constant size: Mamba, linear attention, short convolutions.

Sources: the modelling files of transformers for the weights, vllm/model_executor/layers/mamba/mamba_utils.py for the
states.
"""

from __future__ import annotations

import math

from uellm.models.families import names
from uellm.models.families.part import LayerPart
from uellm.models.fields import Config
from uellm.models.weights import WeightMatrix

DEFAULT_KERNEL = 4  # of the convolution before a Mamba or linear attention layer, in every family
STATE_DTYPES = ("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
STATE_INPUTS = 16  # a state of Mamba takes a step's rank of hidden_size / 16 where none is given


def _with_state(config: Config, part: LayerPart, convolution: int, recurrent: int, *, wide: bool = False) -> LayerPart:
    """The part with its state; the recurrent part of it is in 32 bits where the config says so."""
    wide = wide or any(config.value(name) == "float32" for name in STATE_DTYPES)
    return part + LayerPart(state_numbers=convolution + recurrent * (not wide), state_float32=recurrent * wide)


def mamba1(config: Config, hidden: int, *, norms: bool) -> LayerPart:
    """Mamba: a state of `STATE` numbers for each inner channel. `norms`: over step, B and C, as in Jamba."""
    given = config.count("intermediate_size") if config.value("state_size") else 0
    inner = given or config.size(*names.EXPAND, default=2) * hidden
    state, kernel = config.size(*names.STATE), config.size(*names.KERNEL, default=DEFAULT_KERNEL)
    rank = next((config.size(name) for name in names.TIME_RANK if type(config.value(name)) is int), 0)
    rank = rank or math.ceil(hidden / STATE_INPUTS)
    bias = config.either(*names.PROJECTION_BIAS)
    linears = (
        WeightMatrix("mamba.in_proj", 2 * inner, hidden, bias),
        WeightMatrix("mamba.x_proj", rank + 2 * state, inner),
        WeightMatrix("mamba.dt_proj", inner, rank, bias=True),
        WeightMatrix("mamba.out_proj", hidden, inner, bias),
    )
    convolution = inner * (kernel + config.either(*names.CONVOLUTION_BIAS, default=True))
    other = convolution + inner + (rank + 2 * state) * norms
    part = LayerPart(linears, other=other, float32=inner * state, width=inner)
    return _with_state(config, part, (kernel - 1) * inner, inner * state)


def mamba2(config: Config, hidden: int, *, norm: bool = True, expands: bool = False) -> LayerPart:
    """Mamba 2: heads with a scalar decay each; B and C are shared by groups of them.

    `expands`: its heads share a multiple of the hidden size, whatever width of a head the family assumes.
    """
    heads = config.size(*names.STATE_HEADS)
    given = config.size(*names.EXPAND, default=2) * hidden if expands else config.count("mamba_d_ssm")
    width = next((config.size(name) for name in names.STATE_HEAD_WIDTH if type(config.value(name)) is int), 0)
    inner = given or heads * width or config.size(*names.EXPAND, default=2) * hidden
    state, kernel = config.size(*names.STATE), config.size(*names.KERNEL, default=DEFAULT_KERNEL)
    channels = inner + 2 * config.size(*names.STATE_GROUPS, default=1) * state
    bias = config.either(*names.PROJECTION_BIAS)
    linears = (
        WeightMatrix("mixer.in_proj", inner + channels + heads, hidden, bias),
        WeightMatrix("mixer.out_proj", hidden, inner, bias),
    )
    convolution = channels * (kernel + config.either(*names.CONVOLUTION_BIAS, default=True))
    part = LayerPart(linears, other=convolution + 2 * heads + inner * norm, float32=heads, width=inner)
    return _with_state(config, part, (kernel - 1) * channels, inner * state)


def mamba2_widths(config: Config) -> dict[str, int]:
    """What tensor parallelism divides, by field. One group is copied instead (vLLM's mamba_mixer2.py)."""
    found = {name: config.size(name) for name in [config.first_of(names.STATE_HEADS)] if name}
    groups = config.first_of(names.STATE_GROUPS)
    if groups and config.size(groups) > 1:
        found[groups] = config.size(groups)
    return found


def linear_widths(config: Config) -> dict[str, int]:
    """What tensor parallelism divides in layers of linear attention, beside the heads of attention."""
    if config.value("linear_num_value_heads"):
        return {name: config.size(name) for name in ("linear_num_key_heads", "linear_num_value_heads")}
    if config.value("linear_attn_config") or config.value("linear_num_heads"):
        return {"linear_num_heads": config.inside("linear_attn_config").size("linear_num_heads", "num_heads")}
    # Of Bailing's linear attention, which has a norm over each group of heads.
    return {"group_norm_size": config.size("group_norm_size")} if config.value("group_norm_size") else {}


def delta_net(config: Config, hidden: int) -> LayerPart:
    """The gated delta rule of Qwen3-Next and after it."""
    keys = config.size("linear_num_key_heads") * config.size("linear_key_head_dim")
    heads, width = config.size("linear_num_value_heads"), config.size("linear_value_head_dim")
    values, kernel = heads * width, config.size("linear_conv_kernel_dim", default=DEFAULT_KERNEL)
    channels = 2 * keys + values
    linears = (
        WeightMatrix("linear_attn.in_proj_qkvz", channels + values, hidden),
        WeightMatrix("linear_attn.in_proj_ba", 2 * heads, hidden),
        WeightMatrix("linear_attn.out_proj", hidden, values),
    )
    part = LayerPart(linears, other=channels * kernel + width + heads, float32=heads)
    return _with_state(config, part, (kernel - 1) * channels, values * config.size("linear_key_head_dim"))


def kimi_delta(config: Config, hidden: int) -> LayerPart:
    """Kimi's delta attention: a decay for each channel, through a low rank as wide as a head."""
    inner = config.inside("linear_attn_config")
    heads = inner.size("linear_num_heads", "num_heads")
    width = inner.size("linear_head_dim", "head_dim")  # without the section, head_dim is that of attention
    kernel = inner.size("short_conv_kernel_size", "linear_conv_kernel_dim", default=DEFAULT_KERNEL)
    channels = heads * width
    linears = tuple(WeightMatrix(f"self_attn.{name}_proj", channels, hidden) for name in "qkv")
    for name in "fg":
        linears += (
            WeightMatrix(f"self_attn.{name}_a_proj", width, hidden),
            WeightMatrix(f"self_attn.{name}_b_proj", channels, width),
        )
    linears += (
        WeightMatrix("self_attn.b_proj", heads, hidden),
        WeightMatrix("self_attn.o_proj", hidden, channels),
    )
    part = LayerPart(linears, other=3 * channels * kernel + width, float32=channels + heads)
    return _with_state(config, part, (kernel - 1) * 3 * channels, channels * width, wide=True)


def lightning(config: Config, hidden: int, heads: int, width: int) -> LayerPart:
    """MiniMax's linear attention: a square state for each head, a norm over all of them, and an output gate."""
    channels = heads * width
    linears = (
        WeightMatrix("self_attn.qkv_proj", 3 * channels, hidden),
        WeightMatrix("self_attn.output_gate", channels, hidden),
        WeightMatrix("self_attn.out_proj", hidden, channels),
    )
    return _with_state(config, LayerPart(linears, other=channels), 0, channels * width)


def short_convolution(config: Config, hidden: int) -> LayerPart:
    """LFM2's gated convolution over the last few tokens."""
    length, bias = config.size("conv_L_cache"), config.flag("conv_bias", default=False)
    linears = (
        WeightMatrix("conv.in_proj", 3 * hidden, hidden, bias),
        WeightMatrix("conv.out_proj", hidden, hidden, bias),
    )
    return LayerPart(linears, other=hidden * length + hidden * bias, state_numbers=(length - 1) * hidden)
