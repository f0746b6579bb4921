"""From a blueprint and a precision to an Architecture: numbers become bytes."""

from __future__ import annotations

from collections import Counter

from uellm.models.adapter_widths import widths_of
from uellm.models.architecture import Architecture
from uellm.models.classes import supports_pipeline
from uellm.models.kernels import Kernel
from uellm.models.limits import split_limits
from uellm.models.precision import Precision
from uellm.models.storage import Storage
from uellm.models.weights import Blueprint, Layer, WeightMatrix

FLOAT32_BYTES = 4
HOST_GROUP = 32  # numbers of a table in host memory that have a scale of 8 bits together


def architecture(name: str, plan: Blueprint, precision: Precision, tower: int, notes: tuple[str, ...]) -> Architecture:
    """Bytes and FLOPs by layer. `tower`: numbers of the image encoder, which every stage holds unquantised."""
    width, kv_width = precision.dtype_bytes, precision.kv_dtype_bytes
    layers = plan.layers
    sizes = [_layer(precision, layer, f"{plan.layer_path}.{index}") for index, layer in enumerate(layers)]
    head = _head(plan, precision)
    unrouted = _unrouted(precision, plan)
    idle = sum(layer.idle_parameters for layer in layers)
    return Architecture(
        name=name,
        layers=len(layers),
        hidden_size=plan.hidden_size,
        intermediate_size=plan.intermediate_size,
        vocab_size=plan.vocab_size,
        attention_heads=plan.attention_heads,
        kv_heads=plan.kv_heads,
        head_dim=plan.head_dim,
        dtype=precision.dtype,
        weight_dtype_bytes=width,
        kv_dtype_bytes=kv_width,
        quantization=precision.quantization,
        layer_weight_bytes=tuple(whole for whole, _ in sizes),
        layer_kv_bytes_per_token=tuple(layer.kv_numbers * kv_width + layer.index_bytes for layer in layers),
        layer_fixed_kv_bytes=tuple(layer.index_bytes for layer in layers),
        token_embedding_bytes=plan.token_embedding * width,
        embedding_bytes=(plan.token_embedding + plan.other_embedding) * width,
        final_norm_bytes=plan.final_norm * width,
        lm_head_bytes=head,
        tied=plan.tied,
        writes=plan.has_head,
        parameters=plan.parameters + tower,
        active_parameters=plan.parameters - plan.host_table - plan.unloaded - idle,
        tower_bytes=tower * width,
        max_position_embeddings=plan.max_position_embeddings,
        layer_flops_per_token=tuple(layer.flops for layer in layers),
        layer_attention_flops_per_token=tuple(layer.attention_flops for layer in layers),
        layer_window_tokens=tuple(layer.window for layer in layers),
        layer_state_bytes=tuple(layer.state_numbers * width + layer.state_float32 * FLOAT32_BYTES for layer in layers),
        layer_expert_bytes=tuple(experts for _, experts in sizes),
        experts=plan.experts,
        experts_per_token=plan.experts_per_token,
        head_flops_per_token=2.0 * (plan.vocab_size * plan.width if plan.has_head else plan.classifier),
        supports_pipeline=supports_pipeline(name) and not plan.undivided,
        kv_shared_by_tensor=plan.kv_shared_by_tensor,
        tensor_widths=plan.tensor_widths,
        split_limits=split_limits(plan, precision),
        layer_expert_flops_per_token=tuple(layer.expert_flops for layer in layers),
        linear_kernel=_kernel(precision, plan, routed=False),
        expert_kernel=_kernel(precision, plan, routed=True),
        layer_adapter_widths=tuple(widths_of(layer.linears) for layer in layers),
        layer_recent=tuple(layer.recent for layer in layers) if any(layer.recent for layer in layers) else (),
        predicting_layers=plan.predicting,
        layer_read_again_bytes=tuple(
            sum(precision.size(each, f"{plan.layer_path}.{index}.{each.name}") for each in layer.shared)
            for index, layer in enumerate(layers)
        ),
        host_bytes=plan.host_table + plan.host_table // HOST_GROUP,
        # Each is built like the last layer, behind a projection of the hidden state and the next token's embedding.
        predicting_bytes=plan.predicting * (sizes[-1][0] + 2 * plan.hidden_size**2 * width),
        sparse_attention=plan.sparse_latent,
        int8_products=any(layout.int8_inputs for layout in unrouted),
        fp8_products_only=any(layout.fp8_inputs_only for layout in unrouted),
        notes=(*plan.notes, *notes, *precision.notes),
    )


def _unrouted(precision: Precision, plan: Blueprint) -> set[Storage]:
    """The layouts of quantised matrices outside routed experts."""
    layouts = (
        precision.layout(linear, f"{plan.layer_path}.{index}.{linear.name}")
        for index, layer in enumerate(plan.layers)
        for linear in layer.linears
        if not linear.routed
    )
    return {layout for layout in layouts if layout is not None}


def _kernel(precision: Precision, plan: Blueprint, *, routed: bool) -> Kernel:
    """The format of most of the weights that a token uses, of routed experts or of all other matrices."""
    used: Counter[Kernel] = Counter()
    for index, layer in enumerate(plan.layers):
        for linear in layer.linears:
            if linear.routed == routed:
                weights = linear.weights * linear.used // linear.copies
                used[precision.kernel(linear, f"{plan.layer_path}.{index}.{linear.name}")] += weights
    return max(used, key=lambda kernel: used[kernel], default="16-bit")


def _layer(precision: Precision, layer: Layer, path: str) -> tuple[int, int]:
    """Bytes of a layer, and the part of them in routed experts."""
    whole = experts = 0
    for linear in layer.linears:
        size = precision.size(linear, f"{path}.{linear.name}")
        whole += size
        experts += size * linear.routed
    return whole + layer.other * precision.dtype_bytes + layer.float32 * FLOAT32_BYTES, experts


def _head(plan: Blueprint, precision: Precision) -> int:
    if not plan.has_head:
        return plan.classifier * precision.dtype_bytes
    linear = WeightMatrix("lm_head", plan.vocab_size, plan.width, quantizable=precision.head)
    bias = plan.vocab_size * plan.head_bias * precision.dtype_bytes
    return bias if plan.tied else precision.size(linear, "lm_head") + bias
