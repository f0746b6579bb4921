"""From a config.json to an Architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from uellm.errors import BadInput
from uellm.models.architecture import Architecture
from uellm.models.families import FAMILIES, Family, Shapes
from uellm.models.fields import Config
from uellm.models.precision import Precision, read_precision


def read_architecture(config: Mapping[str, Any], *, dtype: str = "auto", quantization: str = "auto") -> Architecture:
    """Bytes by layer of the model that `config` (config.json, parsed) describes.

    dtype: auto | bfloat16 | float16 | float32; quantization: auto | none | fp8 | awq | gptq.
    Raises BadInput with `config.<field>` for what is missing, absurd or of an unknown architecture.
    """
    if not isinstance(config, Mapping):
        raise BadInput("config", "must be an object, the model's config.json")
    family, text = _family(config)
    shapes = family.read(text)
    # Where a wrapper has a text model inside, dtype and quantisation may stand at either level.
    merged = {**config, **{key: value for key, value in text.fields.items() if value is not None}}
    return _architecture(family, shapes, read_precision(merged, dtype, quantization))


def _family(config: Mapping[str, Any]) -> tuple[Family, Config]:
    inner = config.get("text_config")
    if isinstance(inner, Mapping) and (found := _match(inner)):
        return found, Config(inner, "config.text_config")
    found = _match(config)
    if found:
        return found, Config(config)
    named = config.get("architectures") or config.get("model_type")
    known = ", ".join(family.architecture for family in FAMILIES)
    if not named:
        raise BadInput("config.architectures", f"is missing, so the model is unknown; give one of {known}")
    raise BadInput(
        "config.architectures",
        f"{_first(named)!r} is not known here; known are {known}. If the model is built like one of these, give a "
        "config (spec.model.config) whose architectures names that one, with the same sizes",
    )


def _match(config: Mapping[str, Any]) -> Family | None:
    names = config.get("architectures")
    listed = [str(name) for name in names] if isinstance(names, list | tuple) else []
    for family in FAMILIES:
        if family.architecture in listed:
            return family
    # A text_config carries model_type alone. A listed class that is not known decides against it, though:
    # a reward model or an embedder of the same model_type has other heads.
    if listed:
        return None
    return next((family for family in FAMILIES if family.model_type == config.get("model_type")), None)


def _first(named: Any) -> str:
    return str(named[0]) if isinstance(named, list | tuple) and named else str(named)


def _architecture(family: Family, shapes: Shapes, precision: Precision) -> Architecture:
    width = precision.dtype_bytes
    layer = math.ceil(shapes.layer_linear * precision.bytes_per_linear_weight) + shapes.layer_other * width
    kv = 2 * shapes.kv_heads * shapes.head_dim * width
    head = 0 if shapes.tied else shapes.vocab_size * shapes.lm_head_width
    embedding = shapes.token_embedding + shapes.other_embedding
    layer_weights = shapes.layer_linear + shapes.layer_other
    return Architecture(
        name=family.architecture,
        layers=shapes.layers,
        hidden_size=shapes.hidden_size,
        intermediate_size=shapes.intermediate_size,
        vocab_size=shapes.vocab_size,
        attention_heads=shapes.attention_heads,
        kv_heads=shapes.kv_heads,
        head_dim=shapes.head_dim,
        dtype=precision.dtype,
        weight_dtype_bytes=width,
        kv_dtype_bytes=width,
        quantization=precision.quantization,
        layer_weight_bytes=(layer,) * shapes.layers,
        layer_kv_bytes_per_token=(kv,) * shapes.layers,
        token_embedding_bytes=shapes.token_embedding * width,
        embedding_bytes=embedding * width,
        final_norm_bytes=shapes.final_norm * width,
        lm_head_bytes=head * width,
        tied=shapes.tied,
        parameters=layer_weights * shapes.layers + embedding + shapes.final_norm + head,
        max_position_embeddings=shapes.max_position_embeddings,
        layer_flops_per_token=(2.0 * shapes.layer_linear,) * shapes.layers,
        layer_attention_flops_per_token=(4.0 * shapes.attention_heads * shapes.head_dim,) * shapes.layers,
        layer_window_tokens=shapes.windows,
        layer_state_bytes=(0,) * shapes.layers,
        layer_expert_bytes=(0,) * shapes.layers,
        experts=0,
        experts_per_token=0,
        head_flops_per_token=2.0 * shapes.vocab_size * shapes.lm_head_width,
        supports_pipeline=True,
        kv_shared_by_tensor=True,
        notes=shapes.notes + precision.notes,
    )
