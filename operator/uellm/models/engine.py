"""Sizes as the engine itself reports them (uellm.engine_facts), in place of the formulas'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from uellm.errors import BadInput
from uellm.models.architecture import Architecture
from uellm.models.measured import with_tensors
from uellm.models.safetensors import Tensor

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")


def with_engine_facts(model: Architecture, facts: Mapping[str, Any]) -> Architecture:
    """The same model with the engine's bytes by layer, KV cache and state.

    The engine builds the model without its quantisation: a quantised one keeps the formula's weights. Raises BadInput
    where the engine's layers are not the model's.
    """
    found = model
    if model.quantization == "none":
        tensors = {name: Tensor(dtype, tuple(shape)) for name, (dtype, shape) in facts["tensors"].items()}
        found = with_tensors(model, tensors)
    kv, state = [0] * model.layers, [0] * model.layers
    windows: list[int | None] = [None] * model.layers
    for name, cache in facts["caches"].items():
        index = _index(name, model.layers)
        kv[index] += cache["bytesPerToken"]
        state[index] += cache["stateBytes"]
        windows[index] = windows[index] or cache["windowTokens"]
    fp8 = model.weight_dtype_bytes // model.kv_dtype_bytes
    return replace(
        found,
        layer_kv_bytes_per_token=tuple(each // fp8 for each in kv),
        layer_state_bytes=tuple(state),
        layer_window_tokens=tuple(windows),
        source="engine",
    )


def _index(name: str, layers: int) -> int:
    layer = LAYER.search(name)
    if layer is None or int(layer[1]) >= layers:
        raise BadInput("config", f"describes {layers} layers, but the engine has a cache for {name}")
    return int(layer[1])
