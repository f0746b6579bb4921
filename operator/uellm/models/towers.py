"""The weights of the image encoder in a multimodal model, with the projector into the text model.

Exact for the towers named here; for any other, a note says that it is not counted. The engine builds the tower on every
stage, and quantisations do not change it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from uellm.errors import BadInput
from uellm.models.fields import Config
from uellm.models.weights import Blueprint

CHANNELS = 3
# Frames that Qwen's encoders merge into one patch.
TEMPORAL_PATCH = 2
SENSES = ("vision_config", "audio_config")


def read_tower(config: Mapping[str, Any], plan: Blueprint) -> tuple[int, tuple[str, ...]]:
    """Numbers of the image encoder, and notes on what is not counted."""
    present = [field for field in SENSES if config.get(field)]
    notes: list[str] = []
    numbers = 0
    for field in present:
        section = config[field]
        if not isinstance(section, Mapping):
            raise BadInput(f"config.{field}", "must be an object")
        kind = str(section.get("model_type") or config.get("model_type"))
        found = TOWERS.get(kind) if field == "vision_config" else None
        missing = [] if found is None else [name for name in found[0] if section.get(name) is None]
        if found is None or missing:
            why = f"{field} omits {', '.join(missing)}" if missing else f"{kind} is unknown"
            notes.append(f"the weights behind {field} are not counted ({why}): leave memory for them on every GPU")
            continue
        numbers += found[1](Config(section, f"config.{field}"), Config(config), plan.hidden_size)
    return numbers, tuple(notes)


def _block(hidden: int, ffn: int, *, bias: bool = True) -> int:
    """A ViT block: four square matrices, a plain MLP, two LayerNorms."""
    return 4 * hidden * hidden + 2 * hidden * ffn + (5 * hidden + ffn) * bias + 4 * hidden


def _linear(rows: int, columns: int, bias: bool = True) -> int:
    return rows * columns + rows * bias


def _clip(tower: Config, whole: Config, text: int) -> int:
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch, image = tower.size("patch_size"), tower.size("image_size")
    embed = hidden + CHANNELS * patch * patch * hidden + ((image // patch) ** 2 + 1) * hidden
    blocks = tower.layers() * _block(hidden, ffn)
    return embed + blocks + 4 * hidden + _linear(text, hidden) + _linear(text, text)


def _siglip(tower: Config, whole: Config, text: int) -> int:
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch, image = tower.size("patch_size"), tower.size("image_size")
    embed = CHANNELS * patch * patch * hidden + hidden + (image // patch) ** 2 * hidden
    blocks = tower.layers() * _block(hidden, ffn)
    if "gemma3" in str(whole.fields.get("model_type")):
        projector = hidden * text + hidden
    else:
        projector = _linear(text, hidden) + _linear(text, text)
    # The engine does not load the pooling head, because the text model reads all patches.
    return embed + blocks + 2 * hidden + projector


def _pixtral(tower: Config, whole: Config, text: int) -> int:
    hidden, ffn, patch = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("patch_size")
    block = 4 * hidden * hidden + 3 * hidden * ffn + 2 * hidden
    embed = CHANNELS * patch * patch * hidden + hidden
    bias = whole.flag("multimodal_projector_bias", default="mistral3" not in str(whole.fields.get("model_type")))
    projector = _linear(text, hidden, bias) + _linear(text, text, bias)
    if "mistral3" in str(whole.fields.get("model_type")):
        merge = whole.size("spatial_merge_size", default=2)
        projector += hidden + (hidden * merge**2) * hidden
    return embed + tower.layers() * block + projector


def _llama4(tower: Config, whole: Config, text: int) -> int:
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch, image = tower.size("patch_size"), tower.size("image_size")
    embed = CHANNELS * patch * patch * hidden + hidden + ((image // patch) ** 2 + 1) * hidden
    inner, out = tower.size("projector_input_dim"), tower.size("projector_output_dim")
    adapter = ffn * inner + out * out
    projector = text * tower.size("vision_output_dim")
    return embed + 4 * hidden + tower.layers() * _block(hidden, ffn) + adapter + projector


def _qwen_patches(tower: Config, hidden: int) -> tuple[int, int]:
    """Numbers of the patch embedding, and the width of patches merged into one."""
    patch, merge = tower.size("patch_size", default=14), tower.size("spatial_merge_size", default=2)
    frames = tower.size("temporal_patch_size", default=TEMPORAL_PATCH)
    return CHANNELS * frames * patch * patch * hidden, hidden * merge * merge


def _qwen2_vl(tower: Config, whole: Config, text: int) -> int:
    hidden, out = tower.size("embed_dim"), tower.size("hidden_size")
    embed, merged = _qwen_patches(tower, hidden)
    blocks = tower.size("depth") * _block(hidden, tower.size("mlp_ratio", default=4) * hidden)
    return embed + blocks + 2 * hidden + _linear(merged, merged) + _linear(out, merged)


def _qwen2_5_vl(tower: Config, whole: Config, text: int) -> int:
    hidden, ffn, out = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("out_hidden_size")
    embed, merged = _qwen_patches(tower, hidden)
    block = 4 * (hidden * hidden + hidden) + 3 * hidden * ffn + 2 * ffn + hidden + 2 * hidden
    return embed + tower.size("depth") * block + hidden + _linear(merged, merged) + _linear(out, merged)


def _qwen3_vl(tower: Config, whole: Config, text: int) -> int:
    hidden, ffn, out = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("out_hidden_size")
    embed, merged = _qwen_patches(tower, hidden)
    embed += hidden + tower.size("num_position_embeddings") * hidden
    merger = _linear(merged, merged) + _linear(out, merged)
    deep = tower.fields.get("deepstack_visual_indexes")
    extra = (len(deep) if isinstance(deep, list | tuple) else 0) * (merger + 2 * merged)
    return embed + tower.size("depth") * _block(hidden, ffn) + merger + 2 * hidden + extra


VIT = ("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size", "image_size")
# By the tower's model_type: the fields that it needs, and its count of numbers.
TOWERS: dict[str, tuple[tuple[str, ...], Callable[[Config, Config, int], int]]] = {
    "clip_vision_model": (VIT, _clip),
    "siglip_vision_model": (VIT, _siglip),
    "pixtral": (VIT[:-1], _pixtral),
    "llama4_vision_model": ((*VIT, "projector_input_dim", "projector_output_dim", "vision_output_dim"), _llama4),
    "qwen2_vl": (("embed_dim", "hidden_size", "depth"), _qwen2_vl),
    "qwen2_5_vl": (("hidden_size", "intermediate_size", "depth", "out_hidden_size"), _qwen2_5_vl),
    "qwen3_vl": (
        ("hidden_size", "intermediate_size", "depth", "out_hidden_size", "num_position_embeddings"),
        _qwen3_vl,
    ),
}
TOWERS["qwen3_vl_moe"] = TOWERS["qwen3_vl"]
TOWERS["qwen2_vl_vision"] = TOWERS["qwen2_vl"]
TOWERS["qwen2_5_vl_vision"] = TOWERS["qwen2_5_vl"]
TOWERS["qwen3_vl_vision"] = TOWERS["qwen3_vl"]
