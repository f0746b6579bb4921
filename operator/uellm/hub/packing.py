"""The headers of a model's tensors in little room: JSON by dtype, {DTYPE: {NAME: SHAPE}}, compressed with zlib.

What is unpacked comes from a pod or from an object that others may edit, so everything has a limit.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

from uellm.documents import UnreadableDocument
from uellm.models import Tensor
from uellm.models.safetensors import DTYPE_BITS

UNPACKED_BYTES = 64 << 20
MOST_TENSORS = 500_000
MOST_SIDES = 8
LONGEST_NAME = 512
MOST_NUMBERS = 1 << 50
"""Of one tensor; far more than any file holds, and small enough to reckon with."""
_NAME = "the packed headers"


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors, packed. The same tensors give the same bytes."""
    by_dtype: dict[str, dict[str, tuple[int, ...]]] = {}
    for name in sorted(tensors):
        by_dtype.setdefault(tensors[name].dtype, {})[name] = tensors[name].shape
    return zlib.compress(json.dumps(by_dtype, separators=(",", ":"), sort_keys=True).encode(), 9)


def unpack(packed: bytes) -> dict[str, Tensor]:
    """The inverse of `pack`. Raises UnreadableDocument for anything that it did not write, or that is too large."""
    by_dtype = _decoded(packed)
    if not isinstance(by_dtype, dict):
        raise UnreadableDocument(_NAME, "they are no JSON object")
    tensors: dict[str, Tensor] = {}
    for dtype, shapes in by_dtype.items():
        if dtype not in DTYPE_BITS or not isinstance(shapes, dict):
            raise UnreadableDocument(_NAME, f"{dtype[:20]!r} is no dtype with its tensors")
        for name, shape in shapes.items():
            tensors[name] = _tensor(dtype, name, shape)
        if len(tensors) > MOST_TENSORS:
            raise UnreadableDocument(_NAME, f"they are more than {MOST_TENSORS:,}")
    return tensors


def _decoded(packed: bytes) -> Any:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(packed, UNPACKED_BYTES)
        if not stream.eof:
            raise UnreadableDocument(_NAME, f"they are cut short, or have more than {UNPACKED_BYTES:,} bytes")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise UnreadableDocument(_NAME, "they are not compressed JSON") from error


def _tensor(dtype: str, name: str, shape: Any) -> Tensor:
    if len(name) > LONGEST_NAME or not isinstance(shape, list) or len(shape) > MOST_SIDES:
        raise UnreadableDocument(_NAME, f"{name[:80]!r} has no shape")
    if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) > MOST_NUMBERS:
        raise UnreadableDocument(_NAME, f"{name[:80]!r} has no shape of a tensor")
    return Tensor(dtype, tuple(shape))
