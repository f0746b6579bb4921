"""Sizes as the engine itself reports them (uellm.engine_facts), in place of the formulas'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from uellm.errors import BadInput
from uellm.models.architecture import Architecture
from uellm.models.measured import with_tensors
from uellm.models.safetensors import Tensor
from uellm.models.weights import RecentCache

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def with_engine_facts(model: Architecture, facts: Mapping[str, Any]) -> Architecture:
    """The same model with the engine's bytes by layer, KV cache and state.

    The engine builds the model without its quantisation: a quantised one keeps the formula's weights. Raises BadInput
    where the engine's layers are not the model's.
    """
    found = model
    if model.quantization == "none":
        tensors = {name: Tensor(dtype, tuple(shape)) for name, (dtype, shape) in facts["tensors"].items()}
        found = with_tensors(model, tensors, held=True)
    state = [0] * model.layers
    reaches: list[dict[int | None, int]] = [{} for _ in range(model.layers)]
    indices = _indices(facts["caches"], model)
    for name, cache in facts["caches"].items():
        index, window = indices[name], cache["windowTokens"]
        state[index] += cache["stateBytes"]
        if cache["bytesPerToken"]:
            reaches[index][window] = reaches[index].get(window, 0) + cache["bytesPerToken"]
    kept = [_kept(reach) for reach in reaches]
    fp8 = model.weight_dtype_bytes // model.kv_dtype_bytes
    return replace(
        found,
        layer_kv_bytes_per_token=tuple(
            (kv - min(kv, fixed)) // fp8 + min(kv, fixed)
            for (kv, _, _), fixed in zip(kept, model.layer_fixed_kv_bytes, strict=True)
        ),
        layer_state_bytes=tuple(state),
        layer_window_tokens=tuple(window for _, window, _ in kept),
        layer_recent=tuple(recent for _, _, recent in kept) if any(recent for _, _, recent in kept) else (),
        source="engine",
    )


def _kept(reaches: Mapping[int | None, int]) -> tuple[int, int | None, tuple[RecentCache, ...]]:
    """Bytes of a token in a layer's caches of the longest reach, that reach, and the caches of fewer tokens.

    `reaches`: bytes by window; None: the whole context.
    """
    if not reaches:
        return 0, None, ()
    widest = max(reaches, key=lambda window: float("inf") if window is None else window)
    shorter = sorted((window, size) for window, size in reaches.items() if window is not None and window != widest)
    return reaches[widest], widest, tuple(RecentCache(size, window) for window, size in shorter)


def _indices(names: Iterable[str], model: Architecture) -> dict[str, int]:
    """The layer of each cache. A few classes number theirs apart: they are those of all layers in order, or of all that
    attend (FalconH1's and Zamba2's)."""
    found, apart = dict[str, int](), dict[str, list[tuple[int, str]]]()
    for name in names:
        layer, numbers = LAYER.search(name), NUMBER.findall(name)
        if layer is not None and int(layer[1]) < model.layers:
            found[name] = int(layer[1])
        elif numbers:
            apart.setdefault(NUMBER.sub("", name), []).append((int(numbers[-1]), name))
        else:
            raise _stranger(model, name)
    attending = [index for index, kv in enumerate(model.layer_kv_bytes_per_token) if kv]
    for numbered in apart.values():
        layers = next((each for each in (range(model.layers), attending) if len(each) == len(numbered)), None)
        if layers is None:
            raise _stranger(model, numbered[0][1])
        found.update(zip((name for _, name in sorted(numbered)), layers, strict=True))
    return found


def _stranger(model: Architecture, name: str) -> BadInput:
    return BadInput("config", f"describes {model.layers} layers, but the engine has a cache for {name}")
