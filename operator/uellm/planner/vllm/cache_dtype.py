"""The KV cache in the data type that the engine is asked for (`--kv-cache-dtype`)."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from uellm.models import Architecture
from uellm.planner import constants as c
from uellm.planner.vllm.flags import UserArgs

FLAG = "--kv-cache-dtype"


def with_cache(model: Architecture, user: UserArgs) -> Architecture:
    """The model with the KV cache of the user's flag."""
    return in_dtype(model, user.text(FLAG) or "auto")


def in_dtype(model: Architecture, asked: str) -> Architecture:
    """The model with a KV cache of a data type; what is packed in bytes of its own, such as an indexer's, stays."""
    width = _width(model, asked)
    if width == 1:
        return model
    whole, fixed = model.layer_kv_bytes_per_token, model.layer_fixed_kv_bytes or (0,) * model.layers
    packed = map(min, whole, fixed)
    kept = tuple(_row(model, asked, (kv - own) * width) + own for kv, own in zip(whole, packed, strict=True))
    return replace(model, layer_kv_bytes_per_token=kept)


def relative_width(model: Architecture, asked: str) -> Fraction:
    """Bytes of a token in a KV cache of a data type, relative to the model's own."""
    own = model.kv_bytes_per_token
    return Fraction(in_dtype(model, asked).kv_bytes_per_token, own) if own else Fraction(1)


def _width(model: Architecture, asked: str) -> Fraction:
    """Bytes per number, relative to the model's own."""
    if asked.startswith("fp8"):
        return Fraction(1, model.kv_dtype_bytes)
    # A checkpoint may declare FP8; the flag then asks for the wider cache of its data type.
    return Fraction(model.weight_dtype_bytes, model.kv_dtype_bytes) if asked == model.dtype else Fraction(1)


def _row(model: Architecture, asked: str, size: Fraction) -> int:
    """Bytes of a layer's keys and values; sparse latent attention has scales, and a part in 16 bits, in FP8."""
    if size == c.SPARSE_LATENT_NUMBERS and model.sparse_attention and asked.startswith("fp8"):
        return c.SPARSE_LATENT_FP8_BYTES
    return math.ceil(size)
