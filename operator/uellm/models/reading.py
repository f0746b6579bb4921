"""From a config.json to an Architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from uellm.errors import BadInput
from uellm.models.architecture import Architecture
from uellm.models.classes import breaks_in_float16
from uellm.models.finding import FAMILY_FIELD, find_text_model
from uellm.models.measured import with_tensors
from uellm.models.precision import ALIASES, read_precision
from uellm.models.safetensors import Tensor
from uellm.models.shown import check_bounds
from uellm.models.sizing import architecture
from uellm.models.tasks import POOLING_TASKS, Task, is_bidirectional, tasks_of
from uellm.models.towers import read_tower, unread_tower
from uellm.models.towers.encoders import read_encoder


def read_architecture(
    config: Mapping[str, Any],
    *,
    dtype: str = "auto",
    quantization: str = "auto",
    tensors: Mapping[str, Tensor] | None = None,
    task: Task | None = None,
    served: bool = True,
) -> Architecture:
    """Bytes by layer of the model that `config` (config.json, parsed) describes.

    dtype: auto | bfloat16 | float16 | float32; quantization: auto | none | fp8 | awq | gptq | ... (precision.py).
    tensors: those of the checkpoint's headers; their bytes then replace the formula's.
    task: what the model is served for; None: what it is for by itself. An embedder or reranker has no LM head.
    served: refuse what vLLM 0.32 does not start with (served.py).
    Raises BadInput with `config.<field>` for what is missing, absurd or of an unknown architecture.
    """
    if not isinstance(config, Mapping):
        raise BadInput("config", "must be an object, the model's config.json")
    check_bounds(config)
    pooled = (task or tasks_of(config).inferred) in POOLING_TASKS
    text = find_text_model(config, pooled=pooled)
    # Where a wrapper has a text model inside, dtype and quantisation may stand at either level.
    merged = {**text.fields, **{key: value for key, value in config.items() if value is not None}}
    tower, tower_notes = read_tower(text.wrapper, text.plan.hidden_size)
    if not tower and not tower_notes:
        tower_notes = unread_tower(text.name)
    notes = tower_notes + text.notes
    if served and ALIASES.get(dtype, dtype) == "float16" and breaks_in_float16(text.name):
        raise BadInput("dtype", f"float16 is refused by the engine for {text.name}: set bfloat16 or float32")
    precision = read_precision(merged, dtype, quantization, measured=tensors is not None, served=served)
    if dtype == "auto" and precision.dtype == "float16" and breaks_in_float16(text.name):
        precision = replace(precision, dtype="bfloat16")  # what `auto` makes of it
    if tensors is not None and precision.differs:
        notes += (f"the checkpoint's own bytes do not hold for quantization {precision.quantization}: reckoned",)
    model = replace(
        architecture(text.name, text.plan, precision, tower, notes),
        asserted=str(config.get(FAMILY_FIELD) or ""),
        exact=text.exact and not tower_notes,
        encoder=read_encoder(text.wrapper, text.plan.hidden_size),
    )
    if pooled and is_bidirectional(merged, text.name):
        model = replace(model, layer_kv_bytes_per_token=(0,) * model.layers)
    if pooled and not model.kv_bytes_per_token:
        # A token attends to those behind it as well, so to twice as many on average.
        both_ways = tuple(2 * flops for flops in model.layer_attention_flops_per_token)
        model = replace(model, layer_attention_flops_per_token=both_ways)
    return model if tensors is None or precision.differs else with_tensors(model, tensors)
