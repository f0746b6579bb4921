"""Bytes by layer, as the engine holds them, from the tensors of a checkpoint instead of a formula."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from uellm.errors import BadInput
from uellm.models.architecture import Architecture
from uellm.models.safetensors import Tensor

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.(.+)$")
EXPERTS = re.compile(r"(?:^|\.)experts\.")
TOWERS = (
    *("vision", "visual", "image_", "audio", "vit.", "multi_modal_projector", "mm_projector", "patch_merger"),
    *("model.encoder.", "mlp1.", "speech", "sound", "whisper_encoder", "mlp_AR."),
)
BERT = "model.encoder.layer."
"""Whisper's encoder has `layers`."""
TEXT_MODELS = ("language_model.", "llm.")
"""Where a checkpoint has one of them, layers outside it are those of encoders, whatever these are called."""
EMBEDDINGS = (
    *("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight"),
    *("backbone.embeddings.weight", "embed_in.weight", "model.embedding.weight"),
    *(".embed.weight", ".wte.embedding", ".wte.new_embedding"),
)
"""Ends of names, with a dot before them where a longer word ends so, too."""
OUTPUT = "output."
"""Begins the LM head's name in InternLM 2 and in Mistral's own format."""
LM_HEADS = ("lm_head.", "output_layer.", "embed_out.", ".head.weight.", ".unembed.", ".transformer.ff_out.")
CLASSIFIERS = ("score.", "classifier.")
# Layers for multi-token prediction, and the parts of an omni model that the engine does not load.
VOICE = re.compile(r"(?:talker|code2wav|token2wav)\.")
IDLE = re.compile(rf"(?:^|\.)mtp(?:_\w+)?\.|^{VOICE.pattern}")
HOSTED = re.compile(r"\.engram\.embed(?:_tokens)?\.")
"""Tables of n-grams, which the engine keeps in host memory (DeepSeek V4.1)."""
NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
# Buffers that old checkpoints hold and no engine loads: tables of RoPE, GPT-2's triangular masks.
BUFFERS = ("inv_freq", ".attn.bias", ".attn.masked_bias", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
FLOATS = ("F64", "F32", "F16", "BF16")
# Numbers kept in 32 bits for every dtype: scales of quantised weights, and the router's bias in DeepSeek V3.
KEPT = (
    *("scale", "scales", "scale_inv", "weight_scale_inv", "weight_scale", "input_scale"),
    *("absmax", "SCB", "e_score_correction_bias", "A_log"),
)
# Differences from the formula's bytes are noted above this share.
NOTEWORTHY = 0.01


@dataclass(slots=True)
class _Tally:
    """Sums over the tensors of a checkpoint."""

    layers: dict[int, int] = field(default_factory=dict)
    """Bytes by layer."""
    experts: dict[int, int] = field(default_factory=dict)
    """Bytes of routed experts by layer."""
    places: dict[str, int] = field(default_factory=dict)
    """Bytes outside the layers, by place: embedding, head, norm, tower, other."""
    numbers: int = 0
    """Count of all numbers."""
    predicting: int = 0
    """Bytes of layers for multi-token prediction, a part of `beyond`."""
    hosted: int = 0
    """Bytes of tables in host memory."""
    beyond: int = 0
    """Bytes that plain serving does not load: layers of multi-token prediction, an omni model's voice."""


def with_tensors(model: Architecture, tensors: Mapping[str, Tensor], *, held: bool = False) -> Architecture:
    """The same model with the bytes of its checkpoint. FLOPs, KV cache and windows do not change.

    `held`: the tensors are those that the engine holds; it converts none any more.

    Where no tensor can be the embedding, the bytes stay those of config.json. Raises BadInput if a layer is missing.
    """
    tally = _tally(model, tensors, held=held)
    built = [index for index in range(model.layers) if model.layer_weight_bytes[index]]  # others share their weights
    gone = [index for index in built if index not in tally.layers]
    if gone:
        raise BadInput(
            "safetensors",
            f"hold no weights of layer {gone[0]} of {model.layers} ({len(gone)} are missing): this is not the whole "
            "checkpoint, or not that of config.json",
        )
    if "embedding" not in tally.places:
        return replace(model, notes=(*model.notes, "the checkpoint's headers show no embedding: sized by config.json"))
    embedding = tally.places["embedding"]
    head = 0 if model.tied else tally.places.get("head", 0)
    plain = model.quantization == "none"
    found = replace(
        model,
        layer_weight_bytes=tuple(tally.layers.get(index, 0) for index in range(model.layers)),
        layer_expert_bytes=tuple(tally.experts.get(index, 0) for index in range(model.layers)),
        token_embedding_bytes=embedding,
        embedding_bytes=embedding + tally.places.get("other", 0),
        final_norm_bytes=tally.places.get("norm", 0),
        lm_head_bytes=head,
        tower_bytes=tally.places.get("tower", 0),
        host_bytes=tally.hosted or model.host_bytes,
        parameters=tally.numbers if plain else model.parameters,
        predicting_bytes=tally.predicting or model.predicting_bytes,
        measured=True,
        source="safetensors",
    )
    if model.asserted and abs(found.weight_bytes / model.weight_bytes - 1) > NOTEWORTHY:
        raise BadInput(
            "config.uellm_family",
            f"is {model.asserted}, but the checkpoint's headers hold {found.weight_bytes} bytes and that family would "
            f"have {model.weight_bytes}: take another family, or leave it out",
        )
    return replace(found, notes=_notes(model, found, tally))


def _tally(model: Architecture, tensors: Mapping[str, Tensor], *, held: bool) -> _Tally:
    tally = _Tally()
    inner = next((part for part in TEXT_MODELS if any(part in name for name in tensors)), "")
    unnamed = _unnamed_embedding(model, tensors)
    for name, tensor in tensors.items():
        if name.endswith(BUFFERS):
            continue
        size = tensor.size if held else loaded_bytes(name, tensor, model.weight_dtype_bytes)
        place, index = ("embedding", 0) if name == unnamed else _place(name)
        if IDLE.search(name) or (place == "layer" and index >= model.layers):
            tally.beyond += size
            tally.predicting += size * (VOICE.match(name) is None)
            continue
        if HOSTED.search(name):
            tally.hosted += tensor.size
            tally.numbers += tensor.numbers
            continue
        if place == "layer" and inner not in name:
            place = "tower"
        if place == "head" and (model.tied or _unused(model, name)):  # tied: a copy in the file, one in the engine
            continue
        tally.numbers += tensor.numbers
        if place != "layer":
            tally.places[place] = tally.places.get(place, 0) + size
            continue
        tally.layers[index] = tally.layers.get(index, 0) + size
        if EXPERTS.search(name):
            tally.experts[index] = tally.experts.get(index, 0) + size
    return tally


def _unnamed_embedding(model: Architecture, tensors: Mapping[str, Tensor]) -> str:
    """The embedding by its shape where none has a name of one; empty: there is none."""
    if any(is_embedding(name) for name in tensors):
        return ""
    shape = (model.vocab_size, model.hidden_size)
    return next((name for name, each in tensors.items() if each.shape == shape and _place(name)[0] == "other"), "")


def is_embedding(name: str) -> bool:
    """Whether a tensor is called as embeddings of tokens are."""
    return f".{name}".endswith(EMBEDDINGS)


def is_lm_head(name: str) -> bool:
    """Whether a tensor is called as LM heads are."""
    return name.startswith(OUTPUT) or any(head in f".{name}." for head in LM_HEADS)


def _unused(model: Architecture, name: str) -> bool:
    """Whether it is an LM head that the engine does not build, because the model is served without one."""
    return not model.writes and is_lm_head(name)


def loaded_bytes(name: str, tensor: Tensor, width: int) -> int:
    """Bytes of a tensor in the engine, which converts weights to its own dtype."""
    if tensor.dtype not in FLOATS or name.rpartition(".")[2] in KEPT:
        return tensor.size
    return tensor.numbers * width


def _place(name: str) -> tuple[str, int]:
    """The place of a tensor: a layer's index, or embedding, head, norm, tower or other."""
    layer = LAYER.search(name)
    if any(part in name for part in TOWERS) and not name.startswith(BERT):
        return "tower", 0
    if layer:
        return "layer", int(layer[1])
    if is_embedding(name):
        return "embedding", 0
    if is_lm_head(name) or any(head in f"{name}." for head in CLASSIFIERS):
        return "head", 0
    module = name.rpartition(".")[0].rpartition(".")[2]
    return ("norm", 0) if module in NORMS else ("other", 0)


def _notes(formula: Architecture, found: Architecture, tally: _Tally) -> tuple[str, ...]:
    notes = [note for note in formula.notes if "not counted" not in note]
    if tally.beyond:
        notes.append(f"{tally.beyond} bytes beside the model are not counted: they serve speculation or speech alone")
    apart = found.weight_bytes / formula.weight_bytes - 1
    if abs(apart) > NOTEWORTHY:
        notes.append(f"the checkpoint's weights are {apart:+.1%} of what config.json lets expect")
    return tuple(notes)
