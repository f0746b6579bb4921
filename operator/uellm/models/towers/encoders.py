"""What the image encoders of Qwen2-VL and after it compute on: patches, as many as the input has, and widths.

Other encoders scale an image to one size, or cut it into tiles of one size, so they take little memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.models.defaults import class_defaults
from uellm.models.fields import Config, MissingField
from uellm.models.towers.blocks import CHANNELS

TEMPORAL_PATCH = 2
# Whose processors scale each frame of a video as an image; later ones scale the video as a whole.
BY_FRAME = ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni")


@dataclass(frozen=True, slots=True)
class EncoderWidths:
    """An image encoder, by what its activations take. Numbers are counted for a patch."""

    hidden: int
    intermediate: int
    input_numbers: int
    patches_per_token: int
    pixels_per_token: int
    """Of an image."""
    numbers_per_token: int
    """Of its output."""
    scales_by_frame: bool


def read_encoder(config: Mapping[str, Any], text: int) -> EncoderWidths | None:
    """Of a model whose text model is `text` wide; None: it has no such encoder."""
    section = config.get("vision_config")
    if not isinstance(section, Mapping):
        return None
    kind = str(section.get("model_type") or config.get("model_type"))
    if not kind.startswith("qwen"):
        return None
    tower = Config(section, "config.vision_config", class_defaults(kind, nested=True))
    try:
        return _widths(tower, kind, text)
    except MissingField:
        return None


def _widths(tower: Config, kind: str, text: int) -> EncoderWidths:
    first = kind.startswith("qwen2_vl")
    hidden = tower.size("embed_dim") if first else tower.size("hidden_size")
    patch, merge = tower.size("patch_size", default=14), tower.size("spatial_merge_size", default=2)
    deep = tower.value("deepstack_visual_indexes")
    levels = 1 + (len(deep) if isinstance(deep, list | tuple) else 0)
    return EncoderWidths(
        hidden=hidden,
        intermediate=tower.size("mlp_ratio", default=4) * hidden if first else tower.size("intermediate_size"),
        input_numbers=CHANNELS * tower.size("temporal_patch_size", default=TEMPORAL_PATCH) * patch * patch,
        patches_per_token=merge * merge,
        pixels_per_token=(patch * merge) ** 2,
        numbers_per_token=levels * text,
        scales_by_frame=kind.startswith(BY_FRAME),
    )
