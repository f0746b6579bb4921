"""From the tensors of a checkpoint to bytes by layer, as the engine holds them: what the formula only reckons."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from uellm.errors import BadInput
from uellm.models.architecture import Architecture
from uellm.models.safetensors import Tensor

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")
EXPERTS = re.compile(r"(?:^|\.)experts\.")
TOWERS = ("vision", "visual", "image_", "audio", "vit.", "multi_modal_projector", "mm_projector", "patch_merger")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")
HEADS = ("lm_head.", "output_layer.", "embed_out.")
NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
# Buffers that old checkpoints hold and no engine loads: tables of RoPE, GPT-2's triangular masks.
BUFFERS = ("inv_freq", ".attn.bias", ".attn.masked_bias", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
FLOATS = ("F64", "F32", "F16", "BF16")
# Numbers that stay in 32 bits whatever the dtype: scales of quantised weights, DeepSeek V3's bias of the router.
KEPT = (
    *("scale", "scales", "scale_inv", "weight_scale_inv", "weight_scale", "input_scale"),
    *("absmax", "SCB", "e_score_correction_bias"),
)
NOTEWORTHY = 0.01  # of the formula's bytes


@dataclass(slots=True)
class _Tally:
    """Bytes by place, and numbers of all."""

    layers: dict[int, int] = field(default_factory=dict)
    experts: dict[int, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    numbers: int = 0
    beyond: int = 0
    """Bytes of layers after the last, such as those of multi-token prediction."""


def with_tensors(model: Architecture, tensors: Mapping[str, Tensor]) -> Architecture:
    """The same model with the bytes that its checkpoint tells. FLOPs, KV and windows stay as they are.

    Raises BadInput where a layer or the embedding is not among the tensors.
    """
    tally = _tally(model, tensors)
    gone = [index for index in range(model.layers) if index not in tally.layers]
    if gone:
        raise BadInput(
            "safetensors",
            f"hold no weights of layer {gone[0]} of {model.layers} ({len(gone)} are missing): this is not the whole "
            "checkpoint, or not that of config.json",
        )
    if "embedding" not in tally.places:
        raise BadInput("safetensors", "hold no embedding of tokens, so this is not the whole checkpoint")
    embedding = tally.places["embedding"]
    head = 0 if model.tied else tally.places.get("head", 0)
    plain = model.quantization == "none"
    found = replace(
        model,
        layer_weight_bytes=tuple(tally.layers[index] for index in range(model.layers)),
        layer_expert_bytes=tuple(tally.experts.get(index, 0) for index in range(model.layers)),
        token_embedding_bytes=embedding,
        embedding_bytes=embedding + tally.places.get("other", 0),
        final_norm_bytes=tally.places.get("norm", 0),
        lm_head_bytes=head,
        tower_bytes=tally.places.get("tower", 0),
        parameters=tally.numbers if plain else model.parameters,
        measured=True,
    )
    return replace(found, notes=_notes(model, found, tally))


def _tally(model: Architecture, tensors: Mapping[str, Tensor]) -> _Tally:
    tally = _Tally()
    for name, tensor in tensors.items():
        if name.endswith(BUFFERS):
            continue
        size = _loaded(name, tensor, model.weight_dtype_bytes)
        place, index = _place(name)
        if place == "layer" and index >= model.layers:
            tally.beyond += size
            continue
        if place == "head" and model.tied:  # a copy in the file, one table in the engine
            continue
        tally.numbers += tensor.numbers
        if place != "layer":
            tally.places[place] = tally.places.get(place, 0) + size
            continue
        tally.layers[index] = tally.layers.get(index, 0) + size
        if EXPERTS.search(name):
            tally.experts[index] = tally.experts.get(index, 0) + size
    return tally


def _loaded(name: str, tensor: Tensor, width: int) -> int:
    """Bytes in the engine, which holds weights in its own dtype."""
    if tensor.dtype not in FLOATS or name.rpartition(".")[2] in KEPT:
        return tensor.size
    return tensor.numbers * width


def _place(name: str) -> tuple[str, int]:
    """Where a tensor belongs: a layer with its number, or embedding, head, norm, tower, other."""
    if any(part in name for part in TOWERS):
        return "tower", 0
    layer = LAYER.search(name)
    if layer:
        return "layer", int(layer[1])
    if name.endswith(EMBEDDINGS):
        return "embedding", 0
    if any(head in f"{name}." for head in HEADS):
        return "head", 0
    module = name.rpartition(".")[0].rpartition(".")[2]
    return ("norm", 0) if module in NORMS else ("other", 0)


def _notes(formula: Architecture, found: Architecture, tally: _Tally) -> tuple[str, ...]:
    notes = [note for note in formula.notes if "not counted" not in note]
    if tally.beyond:
        notes.append(f"{tally.beyond} bytes behind the last layer are not counted: they serve speculation alone")
    apart = found.weight_bytes / formula.weight_bytes - 1
    if abs(apart) > NOTEWORTHY:
        notes.append(f"the checkpoint's weights are {apart:+.1%} of what config.json lets expect")
    return tuple(notes)
