"""Inkling: short convolutions beside attention and MLP, a relative bias, sinks among the experts.

Source: vllm/models/inkling (configs.py, nvidia/model.py).
"""

from __future__ import annotations

from dataclasses import replace

from uellm.errors import BadInput
from uellm.models.families import feed_forward, names
from uellm.models.families.part import LayerPart
from uellm.models.families.parts import Experts, Heads, gated_mlp, heads, routed
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, RecentCache, WeightMatrix

DEFAULT_KERNEL = 4
ROUTER_ROWS = 8  # the router's rows are padded to a multiple
STATE_BYTES = 2  # the convolutions' inputs are kept in bfloat16


def inkling(config: Config) -> Blueprint:
    """Inkling, by the field names of its own checkpoints and by those of transformers."""
    hidden, layers = config.size("hidden_size"), config.layers()
    whole = heads(config, hidden)
    local = Heads(
        config.size("swa_num_attention_heads", default=whole.query),
        config.size("swa_num_key_value_heads", default=whole.kv),
        config.size("swa_head_dim", default=whole.width),
    )
    near = _local(config, layers)
    scale = int(config.flag("use_global_scale", default=False))
    mixture, dense, first = _mixture(config), _dense_width(config), config.count("dense_mlp_idx")
    built = tuple(
        _layer(
            config,
            local if index in near else whole,
            config.size("sliding_window_size") if index in near else None,
            LayerPart(gated_mlp(hidden, dense), other=scale, width=dense)
            if index < first
            else _sparse(config, hidden, mixture),
        )
        for index in range(layers)
    )
    predicting = config.count("num_nextn_predict_layers") or config.count("num_mtp_layers")
    return Blueprint(
        layers=built,
        layer_path="model.llm.layers",
        hidden_size=hidden,
        intermediate_size=max(dense if first else 0, mixture.width * (mixture.per_token + _shared(config))),
        vocab_size=config.size("padded_vocab_size", *names.VOCABULARY),
        attention_heads=whole.query,
        kv_heads=whole.kv,
        head_dim=whole.width,
        final_norm=hidden,
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.size("model_max_length", default=config.longest()),
        other_embedding=hidden * config.flag("use_embed_norm", default=False),
        experts=mixture.total,
        experts_per_token=mixture.per_token,
        tensor_widths=((mixture.field, mixture.width),),
        predicting=predicting,
        notes=(f"{predicting} layer(s) for multi-token prediction are not counted without speculation",)
        * bool(predicting),
    )


def _local(config: Config, layers: int) -> frozenset[int]:
    """The layers with a window: where they are not listed, the engine gives none a window."""
    return config.indices("local_layer_ids", layers) or frozenset()


def _mixture(config: Config) -> Experts:
    """The experts. In the checkpoints' own naming, intermediate_size is the width of one."""
    found = feed_forward.experts_of(config)
    if found is None:
        raise BadInput(f"{config.prefix}.n_routed_experts", "is missing; give it as the model's config.json has it")
    if config.fields.get("dense_intermediate_size") is not None or config.value("moe_intermediate_size") is None:
        return replace(found, width=config.size("intermediate_size"), field="intermediate_size")
    return found


def _dense_width(config: Config) -> int:
    return config.size("dense_intermediate_size", "intermediate_size")


def _shared(config: Config) -> int:
    return config.count("n_shared_experts")


def _sparse(config: Config, hidden: int, of: Experts) -> LayerPart:
    """Experts to which a router chooses, and those that every token passes, which the router scores as well."""
    shared = _shared(config)
    rows = -(-(of.total + shared) // ROUTER_ROWS) * ROUTER_ROWS
    router, *experts = routed(hidden, of)
    linears = (replace(router, rows=rows), *experts)
    # The checkpoints leave the shared experts out of quantisation.
    linears += tuple(
        replace(each, quantizable=False) for each in gated_mlp(hidden, shared * of.width, path="mlp.shared")
    )
    scale = config.flag("use_global_scale", default=False)
    bias = of.total * config.flag("use_gate_bias", default=False)
    return LayerPart(linears, float32=bias + scale, width=of.width * (of.per_token + shared))


def _layer(config: Config, of: Heads, window: int | None, mlp: LayerPart) -> Layer:
    hidden, relative = config.size("hidden_size"), config.size("d_rel")
    kernel = config.size("sconv_kernel_size", "conv_kernel_size", default=DEFAULT_KERNEL)
    query, kv = of.query * of.width, of.kv * of.width
    bias = config.flag("q_bias", default=False)
    linears = (
        WeightMatrix("attn.qkvr", query + 2 * kv + relative * of.query, hidden, bias),
        WeightMatrix("attn.wo_ud", hidden, query, config.flag("o_bias", default=False)),
    )
    convolutions = kernel * (2 * kv + 2 * hidden)
    table = relative * (window or config.size("rel_extent"))
    if hidden % of.kv:
        raise BadInput(f"{config.prefix}.num_key_value_heads", f"{of.kv} does not divide hidden_size {hidden}")
    # Keys, values and two rows of the hidden state, padded to a power of two for each KV head.
    kept = 1 << (2 * of.width + 2 * (hidden // of.kv) - 1).bit_length()
    return Layer(
        linears + mlp.linears,
        2 * hidden + 2 * of.width + convolutions + table + mlp.other,
        of.kv_numbers,
        of.flops,
        window,
        mlp.float32,
        recent=(RecentCache(STATE_BYTES * of.kv * kept, kernel),),
    )
