"""Image encoders that merge patches on their way: MiniCPM-V 4.6, MuseGlimmer, Cosmos 3 Edge, Inkling, DeepSeek V4.

Sources: minicpmv4_6.py, muse_glimmer.py, cosmos3_edge.py in vllm/model_executor/models; vllm/models/inkling/common and
vllm/models/deepseek_v4/common/vision.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations, pairwise

from uellm.errors import BadInput
from uellm.models.fields import Config
from uellm.models.towers.blocks import CHANNELS, block, linear

COSMOS_PROJECTOR = {
    "input_hidden_size": 1024,
    "merger_intermediate_size": 11520,
    "out_hidden_size": 1024,
    "spatial_merge_size": 2,
}  # the defaults of vLLM's own configuration class
MERGED = 4  # patches of a window of two by two
CHANNEL_TILE = 64
MOST_PATCH, MOST_FRAMES, MOST_LAYERS = 256, 64, 64  # which bound the ways to fold a patch


def deepseek(tower: Config, whole: Config, text: int) -> int:
    """DeepSeek V4's and V4.1's: gated MLPs; a projector merges the patches of a square."""
    hidden, ffn = tower.size("hidden_size", default=1024), tower.size("intermediate_size", default=2816)
    patch, merge = tower.size("patch_size", default=14), tower.size("downsample_ratio", default=3)
    one = linear(3 * hidden, hidden) + linear(hidden, hidden) + 3 * hidden * ffn + 2 * hidden
    projector = linear(text, hidden * merge * merge) + linear(text, text) + 3 * text
    return linear(hidden, CHANNELS * patch * patch) + tower.layers() * one + hidden + projector


def deepseek_beside(whole: Config, text: int) -> int:
    """The same where its sizes stand beside those of the text model, as DeepSeek V4's do."""
    names = {"hidden_size": "dim", "intermediate_size": "inter_dim", "num_hidden_layers": "n_layers"}
    names |= {"patch_size": "patch_size", "downsample_ratio": "downsample_ratio"}
    fields = {name: whole.fields.get(f"vision_{own}") for name, own in names.items()}
    return deepseek(Config(fields, whole.prefix), whole, text)


def minicpmv(tower: Config, whole: Config, text: int) -> int:
    """MiniCPM-V 4.6 and 4.7: SigLIP; a window attention merges four patches inside it, an MLP four more behind it."""
    hidden, ffn, patch = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("patch_size")
    embed = CHANNELS * patch * patch * hidden + hidden + (tower.size("image_size") // patch) ** 2 * hidden
    layers = tower.layers() - whole.flag("drop_vision_last_layer", default=False)
    wide = MERGED * hidden
    inside = 4 * linear(hidden, hidden) + 2 * hidden
    inside += 2 * wide + linear(MERGED * ffn, wide) + linear(hidden, MERGED * ffn)
    behind = 2 * wide + linear(wide, wide) + linear(text, wide)
    return embed + layers * block(hidden, ffn) + 2 * hidden + inside + behind


def muse_glimmer(tower: Config, whole: Config, text: int) -> int:
    """MuseGlimmer: patches of several frames, a ViT, and three matrices behind merged patches."""
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch = CHANNELS * tower.size("patch_temporal") * tower.size("patch_size") ** 2
    embed = patch * hidden + tower.size("pos_emb_height") * tower.size("pos_emb_width") * hidden + 2 * hidden
    merged = hidden * tower.size("merge_kernel_size", "merge_size") ** 2
    inner = whole.size("projector_hidden_size", default=tower.size("adapter_dim", default=4096))
    adapter = inner * merged + inner * inner + text * inner
    return embed + tower.layers() * block(hidden, ffn) + 2 * hidden + adapter


def cosmos3_edge(tower: Config, whole: Config, text: int) -> int:
    """Cosmos 3 Edge: SigLIP 2 on any number of patches, and an MLP over merged ones with a section of its own."""
    hidden, ffn, patch = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("patch_size")
    embed = CHANNELS * patch * patch * hidden + hidden + tower.size("num_patches") * hidden
    given = whole.fields.get("projector_config") or {}
    if not isinstance(given, Mapping):
        raise BadInput(f"{whole.prefix}.projector_config", "must be an object")
    own = Config(given, f"{whole.prefix}.projector_config", COSMOS_PROJECTOR)
    inner, wide = own.size("input_hidden_size"), own.size("merger_intermediate_size")
    merged = inner * own.size("spatial_merge_size") ** 2
    norm = 2 * (merged if own.flag("use_postshuffle_norm", default=False) else inner)
    projector = norm + linear(wide, merged) + linear(own.size("out_hidden_size"), wide)
    return embed + tower.layers() * block(hidden, ffn) + 2 * hidden + projector


def inkling(tower: Config, whole: Config, text: int) -> int:
    """Inkling's encoders: a table of quantised frequencies, or a patch folded step by step. None without a width."""
    if tower.value("decoder_dmodel") is None:
        return 0
    out = tower.size("decoder_dmodel")
    if tower.value("n_mel_bins") is not None:
        norm = out * tower.flag("use_audio_norm", default=False)
        return tower.size("n_mel_bins") * tower.size("mel_vocab_size") * out + norm
    steps = _folds(tower)
    numbers = out * tower.flag("use_vision_norm", default=False)
    for index, (before, after) in enumerate(pairwise(steps)):
        folded = before[2] * math.prod(end // start for start, end in zip(before[:2], after[:2], strict=True))
        folded *= after[1] // before[1]  # the second side of the square
        last = index == len(steps) - 2
        numbers += folded * out if last else folded * after[2] + after[2]
    return numbers


def _folds(tower: Config) -> list[tuple[int, int, int]]:
    """Frames, side and channels of a patch before the first and after each of the encoder's layers."""
    patch, frames = tower.size("patch_size"), tower.size("temporal_patch_size")
    layers, channels = tower.layers("n_layers"), tower.size("n_channels", default=CHANNELS)
    for name, size, most in (
        ("patch_size", patch, MOST_PATCH),
        ("temporal_patch_size", frames, MOST_FRAMES),
        ("n_layers", layers, MOST_LAYERS),
    ):
        if size > most:
            raise BadInput(f"{tower.prefix}.{name}", f"must be at most {most}")
    scales, side, deep = [(1, 1, channels)], 1, 1
    for factor in reversed(_factors(patch)):
        side *= factor
        scales.append((1, side, _tiled(side * side * channels)))
    for factor in reversed(_factors(frames)):
        deep *= factor
        scales.append((deep, side, _tiled(side * side * channels * deep)))
    sizes = [math.log(frame * length * length) for frame, length, _ in scales]
    whole = math.log(patch * patch * frames * channels)
    wanted = [whole * step / layers for step in range(layers + 1)]
    if layers >= len(scales):
        chosen = [min(range(len(sizes)), key=lambda index: abs(ideal - sizes[index])) for ideal in wanted]
    else:
        ways = combinations(range(len(sizes)), len(wanted))
        chosen = list(min(ways, key=lambda way: sum(abs(a - sizes[b]) for a, b in zip(wanted, way, strict=True))))
    return [scales[index] for index in (0, *chosen[1:-1], len(scales) - 1)]


def _tiled(channels: int) -> int:
    return math.ceil(channels / CHANNEL_TILE) * CHANNEL_TILE


def _factors(number: int) -> list[int]:
    """Prime factors, smallest first."""
    found, prime = list[int](), 2
    while number > 1:
        while number % prime == 0:
            found.append(prime)
            number //= prime
        prime += 1
    return found
