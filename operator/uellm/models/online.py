"""Quantisations that the engine makes itself while it loads a 16-bit checkpoint, by its names for them.

Source: `_ONLINE_SHORTHANDS` of vllm/config/quantization.py. `nvfp4_per_token`, which runs on few GPUs, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from uellm.models import storage
from uellm.models.storage import Storage

FP8_BLOCK = [128, 128]

ONLINE: Mapping[str, Storage] = {
    "fp8": storage.fp8({}),
    "fp8_per_tensor": storage.fp8({}),
    "fp8_per_block": storage.fp8({"weight_block_size": FP8_BLOCK}),
    "fp8_per_channel": replace(storage.by_row({}), fp8_inputs_only=True),
    "mxfp8": storage.mxfp8({}),
    "mxfp4": storage.mxfp4({}),
    "experts_int8": storage.by_row({}),
    "int8_per_channel_weight_only": storage.by_row({}),
    "bitsandbytes": storage.bitsandbytes({}),
}
MADE_BY_EARLIER_ENGINES = ("bitsandbytes",)
ONLINE_ROUTED_ALONE = ("experts_int8", "int8_per_channel_weight_only")
"""Those that leave everything but routed experts in 16 bits."""
