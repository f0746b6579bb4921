"""The image encoders of Qwen2-VL and after it, Qwen3.5 and GLM-V among them, with their mergers."""

from __future__ import annotations

from uellm.models.fields import Config
from uellm.models.towers.blocks import CHANNELS, block, linear

# Frames that these encoders merge into one patch.
TEMPORAL_PATCH = 2


def _patches(tower: Config, hidden: int) -> tuple[int, int]:
    """Numbers of the patch embedding, and the width of patches merged into one."""
    patch, merge = tower.size("patch_size", default=14), tower.size("spatial_merge_size", default=2)
    frames = tower.size("temporal_patch_size", default=TEMPORAL_PATCH)
    return CHANNELS * frames * patch * patch * hidden, hidden * merge * merge


def qwen2_vl(tower: Config, whole: Config, text: int) -> int:
    """Qwen2-VL."""
    hidden, out = tower.size("embed_dim"), tower.size("hidden_size")
    embed, merged = _patches(tower, hidden)
    blocks = tower.size("depth") * block(hidden, tower.size("mlp_ratio", default=4) * hidden)
    return embed + blocks + 2 * hidden + linear(merged, merged) + linear(out, merged)


def qwen2_5_vl(tower: Config, whole: Config, text: int) -> int:
    """Qwen2.5-VL: gated MLPs, RMSNorm."""
    hidden, ffn, out = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("out_hidden_size")
    embed, merged = _patches(tower, hidden)
    block = 4 * (hidden * hidden + hidden) + 3 * hidden * ffn + 2 * ffn + hidden + 2 * hidden
    return embed + tower.size("depth") * block + hidden + linear(merged, merged) + linear(out, merged)


def exaone(tower: Config, whole: Config, text: int) -> int:
    """EXAONE 4.5: Qwen2.5-VL's, with fewer heads of keys and values than of queries."""
    hidden, heads = tower.size("hidden_size"), tower.size("num_heads")
    whole_heads = qwen2_5_vl(tower, whole, text)
    kept = tower.size("num_key_value_heads", default=heads) * (hidden // heads)
    return whole_heads - tower.size("depth") * 2 * linear(hidden - kept, hidden)


def qwen3_vl(tower: Config, whole: Config, text: int) -> int:
    """Qwen3-VL and Qwen3.5: an embedding of positions, and a merger for each layer of deepstack."""
    hidden, ffn, out = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("out_hidden_size")
    embed, merged = _patches(tower, hidden)
    embed += hidden + tower.size("num_position_embeddings") * hidden
    merger = linear(merged, merged) + linear(out, merged)
    deep = tower.value("deepstack_visual_indexes")
    extra = (len(deep) if isinstance(deep, list | tuple) else 0) * (merger + 2 * merged)
    return embed + tower.size("depth") * block(hidden, ffn) + merger + 2 * hidden + extra
