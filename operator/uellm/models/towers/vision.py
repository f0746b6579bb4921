"""The weights of image encoders, with the projector into the text model."""

from __future__ import annotations

import math

from uellm.models.fields import Config
from uellm.models.towers.blocks import CHANNELS, block, linear

# Of mobilenetv5_300m_enc: Gemma 3n E4B's published count less its other parts.
MOBILENET_NUMBERS = 325_588_032


def clip(tower: Config, whole: Config, text: int) -> int:
    """CLIP, as LLaVA has it: a class token, and norms before and after."""
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch, image = tower.size("patch_size"), tower.size("image_size")
    embed = hidden + CHANNELS * patch * patch * hidden + ((image // patch) ** 2 + 1) * hidden
    blocks = tower.layers() * block(hidden, ffn)
    return embed + blocks + 4 * hidden + linear(text, hidden) + linear(text, text)


def siglip(tower: Config, whole: Config, text: int) -> int:
    """SigLIP with the projector of Gemma 3, PaliGemma, PaddleOCR, Cohere or LLaVA."""
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch = tower.size("patch_size")
    # SigLIP 2 counts its positions itself.
    rows = tower.count("num_patches") or (tower.size("image_size") // patch) ** 2
    embed = CHANNELS * patch * patch * hidden + hidden + rows * hidden
    blocks = tower.layers() * block(hidden, ffn)
    kind = str(whole.fields.get("model_type"))
    if "paddleocr" in kind:
        merged = hidden * tower.size("spatial_merge_size", default=2) ** 2
        projector = 2 * hidden + linear(merged, merged) + linear(text, merged)
    elif "lfm2_vl" in kind:
        merged, inner = hidden * whole.size("downsample_factor") ** 2, whole.size("projector_hidden_size")
        bias = whole.flag("projector_bias", default=True)
        projector = linear(inner, merged, bias) + linear(text, inner, bias)
        projector += 2 * merged * whole.flag("projector_use_layernorm", default=True)
    elif "gemma3" in kind:
        projector = hidden * text + hidden
    elif "paligemma" in kind:
        projector = linear(text, hidden)
    elif "cohere2_vision" in kind:
        merged, inner = hidden * whole.size("downsample_factor") ** 2, whole.size("alignment_intermediate_size")
        projector = linear(inner, merged) + linear(text, inner // 2)
    else:
        projector = linear(text, hidden) + linear(text, text)
    # The pooling head is not served: the text model reads all patches.
    return embed + blocks + 2 * hidden + projector


def pixtral(tower: Config, whole: Config, text: int) -> int:
    """Pixtral: gated MLPs, no biases; Mistral 3 merges patches before the projector."""
    hidden, ffn, patch = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("patch_size")
    block = 4 * hidden * hidden + 3 * hidden * ffn + 2 * hidden
    embed = CHANNELS * patch * patch * hidden + hidden
    bias = whole.flag("multimodal_projector_bias", default="mistral3" not in str(whole.fields.get("model_type")))
    projector = linear(text, hidden, bias) + linear(text, text, bias)
    if "mistral3" in str(whole.fields.get("model_type")):
        merge = whole.size("spatial_merge_size", default=2)
        projector += hidden + (hidden * merge**2) * hidden
    return embed + tower.layers() * block + projector


def llama4(tower: Config, whole: Config, text: int) -> int:
    """Llama 4, with an adapter that shuffles pixels."""
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch, image = tower.size("patch_size"), tower.size("image_size")
    embed = CHANNELS * patch * patch * hidden + hidden + ((image // patch) ** 2 + 1) * hidden
    inner, out = tower.size("projector_input_dim"), tower.size("projector_output_dim")
    adapter = ffn * inner + out * out
    projector = text * tower.size("vision_output_dim")
    return embed + 4 * hidden + tower.layers() * block(hidden, ffn) + adapter + projector


def intern(tower: Config, whole: Config, text: int) -> int:
    """InternViT, with scales behind attention and MLP; the projector reads four patches as one."""
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch, image = _side(tower, "patch_size"), _side(tower, "image_size")
    bias = tower.either("qkv_bias", "attention_bias")
    norms = 2 if tower.value("norm_type") == "rms_norm" else 4
    one = 4 * hidden * hidden + 3 * hidden * bias + hidden + linear(ffn, hidden) + linear(hidden, ffn)
    one += (norms + 2) * hidden + 2 * hidden * tower.either("qk_normalization", "use_qk_norm")
    rows = (image // patch) ** 2 + 1
    embed = hidden + CHANNELS * patch * patch * hidden + hidden + rows * hidden
    ratio = whole.value("downsample_ratio")
    merged = hidden * round(1 / ratio) ** 2 if isinstance(ratio, float) and 0.01 < ratio <= 1 else 4 * hidden
    return embed + tower.layers() * one + 2 * merged + linear(text, merged) + linear(text, text)


def moonvit(tower: Config, whole: Config, text: int) -> int:
    """Kimi's MoonViT, whose projector reads merged patches."""
    hidden, ffn = (
        tower.size("hidden_size", "vt_hidden_size"),
        tower.size("intermediate_size", "vt_intermediate_size"),
    )
    patch = tower.size("patch_size")
    rows = tower.size("init_pos_emb_height", default=64) * tower.size("init_pos_emb_width", default=64)
    embed = CHANNELS * patch * patch * hidden + hidden + rows * hidden
    kernel = tower.value("merge_kernel_size")
    merged = hidden * (math.prod(kernel) if isinstance(kernel, list | tuple) and len(kernel) == 2 else 4)
    projector = 2 * hidden + linear(merged, merged) + linear(text, merged)
    layers = tower.layers("num_hidden_layers", "vt_num_hidden_layers")
    return embed + layers * block(hidden, ffn) + 2 * hidden + projector


def idefics3(tower: Config, whole: Config, text: int) -> int:
    """SigLIP; the connector of Idefics 3 and SmolVLM reads a square of patches as one."""
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch, image = tower.size("patch_size"), tower.size("image_size")
    embed = CHANNELS * patch * patch * hidden + hidden + (image // patch) ** 2 * hidden
    merge = whole.size("scale_factor", default=2)
    return embed + tower.layers() * block(hidden, ffn) + 2 * hidden + hidden * merge * merge * text


def gemma4(tower: Config, whole: Config, text: int) -> int:
    """Gemma 4: gated MLPs, norms before and after, a table of positions for each axis."""
    hidden, ffn, width = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("head_dim")
    query = tower.size("num_attention_heads")
    kv = tower.size("num_key_value_heads", default=query)
    one = 2 * hidden * (query + kv) * width + 3 * hidden * ffn + 4 * hidden + 2 * width
    patch = tower.size("patch_size")
    embed = CHANNELS * patch * patch * hidden + 2 * tower.size("position_embedding_size") * hidden
    return embed + tower.layers() * one + hidden * text


def glm4v(tower: Config, whole: Config, text: int) -> int:
    """GLM-4.1V and after it: gated MLPs, a convolution that merges patches, a gated merger."""
    hidden, out = tower.size("hidden_size"), tower.size("out_hidden_size")
    patch, frames = tower.size("patch_size"), tower.size("temporal_patch_size", default=2)
    merge = tower.size("spatial_merge_size", default=2)
    # The blocks' MLPs are as wide as the text model, the merger's as `intermediate_size`.
    one = linear(3 * hidden, hidden, tower.flag("attention_bias", default=False)) + hidden * hidden
    one += 3 * hidden * out + 2 * hidden
    embed = linear(hidden, CHANNELS * frames * patch * patch) + (tower.size("image_size") // patch) ** 2 * hidden
    merger = out * out + 2 * out + 3 * out * tower.size("intermediate_size")
    down = linear(out, hidden * merge * merge)
    return embed + tower.size("depth") * one + 2 * hidden + down + merger


def glm5_next(tower: Config, whole: Config, text: int) -> int:
    """GLM-5-Next and GLM-OCR: gated MLPs, norms of queries and keys, merged patches, a gated merger."""
    hidden, ffn, out = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("out_hidden_size")
    bias, merge = tower.flag("attention_bias", default=True), tower.size("spatial_merge_size", default=2)
    one = linear(3 * hidden, hidden, bias) + linear(hidden, hidden, bias) + 2 * (hidden // tower.size("num_heads"))
    one += 2 * linear(ffn, hidden, bias) + linear(hidden, ffn, bias) + 2 * hidden
    frames, patch = tower.size("temporal_patch_size", default=2), tower.size("patch_size")
    embed = linear(hidden, CHANNELS * frames * patch * patch)
    merger = out * out + 2 * out + 3 * out * tower.size("projection_intermediate_size", "intermediate_size")
    return embed + tower.layers("depth") * one + hidden + linear(out, hidden * merge * merge) + merger


def phi4(tower: Config, whole: Config, text: int) -> int:
    """Phi-4-multimodal: SigLIP with its pooling head, and a projector."""
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch, image = tower.size("patch_size"), tower.size("image_size")
    embed = CHANNELS * patch * patch * hidden + hidden + (image // patch) ** 2 * hidden
    pooling = hidden + linear(3 * hidden, hidden) + linear(hidden, hidden) + 2 * hidden
    pooling += linear(ffn, hidden) + linear(hidden, ffn)
    projector = linear(text, hidden) + linear(text, text) + 2 * hidden
    return embed + tower.layers() * block(hidden, ffn) + 2 * hidden + pooling + projector


def mobilenet(tower: Config, whole: Config, text: int) -> int:
    """Gemma 3n's MobileNet V5, whose sizes stand in no config, with embeddings of soft tokens and a projection."""
    hidden = tower.size("hidden_size")
    return MOBILENET_NUMBERS + (tower.count("vocab_size") + 2) * hidden + hidden * text


def mllama(tower: Config, whole: Config, text: int) -> int:
    """Llama 3.2 Vision: plain and gated blocks, with embeddings of tiles and of their ratios."""
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch, image = tower.size("patch_size"), tower.size("image_size")
    tiles, rows = tower.size("max_num_tiles"), (image // patch) ** 2 + 1
    ratios = 1 + tower.size("max_aspect_ratio_id", default=8)
    one = 4 * hidden * hidden + linear(ffn, hidden) + linear(hidden, ffn) + 4 * hidden
    gated = tower.size("num_global_layers") * (one + 2)
    embed = CHANNELS * patch * patch * hidden + hidden + rows * hidden + 1
    embed += ratios * tiles * rows * hidden + 2 * (ratios * tiles * hidden + 1)
    return embed + 4 * hidden + tower.layers() * one + gated + linear(text, tower.size("vision_output_dim"))


def _side(tower: Config, name: str) -> int:
    """The length of a square's side; some configs write both sides."""
    value = tower.value(name)
    if isinstance(value, list | tuple) and value:
        return tower.whole(name, value[0])
    return tower.size(name)
