"""The model or head of its own that drafts tokens for speculation: its sizes, as those of an architecture.

A draft model is any model. A head (EAGLE, EAGLE3, DFlash, DSpark, an assistant for multi-token prediction) is a few
decoder layers behind a projection, `fc`, of the model's hidden states; where its checkpoint has no embedding or LM
head, it uses the model's. Heads of Medusa and of an MLP speculator attend to nothing and keep no KV cache. The engine
computes all of them in the model's own dtype. Source: vLLM's config/speculative.py and models/llama_eagle3.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from uellm.errors import BadInput
from uellm.models.architecture import Architecture
from uellm.models.classes import group_of, is_served
from uellm.models.fields import Config
from uellm.models.measured import is_embedding, is_lm_head, loaded_bytes
from uellm.models.reading import read_architecture
from uellm.models.safetensors import Tensor
from uellm.models.shown import check_bounds

DRAFT_MODEL, EAGLE, EAGLE3, MEDUSA, MLP_SPECULATOR = "draft_model", "eagle", "eagle3", "medusa", "mlp_speculator"
WITHOUT_ATTENTION = (MEDUSA, MLP_SPECULATOR)
ASSISTANT = "_assistant"
"""Ends the model_type of heads that read the model's own KV cache."""
TAPPED_STATES = 3
"""Hidden states of the model that EAGLE3 concatenates, where the configuration does not say how many."""
LAYER_SECTION = "transformer_layer_config"
"""Where the format of speculators keeps the configuration of the layers."""
_PROJECTIONS = ("fc.", "model.fc.")
# The part of a checkpoint that the engine does not load.
_IDLE = ("t2d",)
_MEDUSA_HEADS, _MEDUSA_LAYERS = 5, 1
_POINTER_BYTES = 8


def read_draft(
    config: Mapping[str, Any],
    method: str,
    *,
    dtype: str,
    quantization: str = "auto",
    tensors: Mapping[str, Tensor] | None = None,
) -> Architecture:
    """The draft that `config` (its config.json, parsed) describes. `dtype`: that of the model it drafts for.

    Raises BadInput as `read_architecture` does.
    """
    check_bounds(config)
    if method == DRAFT_MODEL:
        return read_architecture(config, dtype=dtype, quantization=quantization, tensors=tensors)
    if method in WITHOUT_ATTENTION:
        return _without_attention(config, method, dtype, tensors)
    plain = _plain(config)
    layers = read_architecture(plain, dtype=dtype, quantization=quantization)
    head = replace(_head(Config(config), layers, method, plain), name=_named(config) or layers.name)
    if str(config.get("model_type")).endswith(ASSISTANT):
        head = replace(head, layer_kv_bytes_per_token=(0,) * head.layers)
    return head if not tensors else _measured(head, tensors)


def missing_class(config: Mapping[str, Any], method: str) -> str:
    """The class that the engine would need for a head and does not have; empty where it has it."""
    name = _named(config)
    if not name or LAYER_SECTION in config or method not in (EAGLE, EAGLE3):
        return ""
    if method == EAGLE and not name.startswith("Eagle"):
        name = f"Eagle{name}"
    elif method == EAGLE3 and not (name.startswith("Eagle3") or name.endswith("Eagle3")):
        name = f"Eagle3{name}"
    return "" if is_served(name) else name


def _named(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list | tuple) and named else ""


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a head's layers as that of a model whose layers are built so."""
    section = config.get(LAYER_SECTION)
    if section is not None and not isinstance(section, Mapping):
        raise BadInput(f"config.{LAYER_SECTION}", "must be an object, the configuration of the draft's layers")
    found = {**config, **(section or {}), "tie_word_embeddings": True}
    if group_of(_named(found)) != "text_generation":
        found.pop("architectures", None)
    return {**found, "model_type": found.get("model_type") or "llama"}


def _head(config: Config, layers: Architecture, method: str, plain: Mapping[str, Any]) -> Architecture:
    """A head without its checkpoint: its layers, its projection, and the LM head that its own vocabulary needs."""
    hidden, width = layers.hidden_size, layers.weight_dtype_bytes
    vocabulary = config.count("draft_vocab_size") or layers.vocab_size
    own = vocabulary != layers.vocab_size
    first = projection = 0
    if method == EAGLE:
        projection = 2 * hidden * hidden
    elif method == EAGLE3:
        # The first layer attends from the embedding and the hidden state side by side.
        first = hidden * layers.head_dim * (layers.attention_heads + 2 * layers.kv_heads)
        states = config.count("num_aux_hidden_states") or _tapped(config.fields)
        projection = states * hidden * (config.count("target_hidden_size") or hidden)
    weights, flops = list(layers.layer_weight_bytes), list(layers.layer_flops_per_token)
    weights[0] += first * width
    # EAGLE3 has a further norm in each layer; EAGLE has neither the first one nor the last.
    if method == EAGLE3:
        weights = [each + hidden * width for each in weights]
    elif method == EAGLE:
        weights[0] -= hidden * width
    flops[0] += 2.0 * (first + projection)
    return replace(
        layers,
        vocab_size=vocabulary,
        layer_weight_bytes=tuple(weights),
        layer_flops_per_token=tuple(flops),
        token_embedding_bytes=0,
        embedding_bytes=projection * width,
        final_norm_bytes=0 if method == EAGLE else layers.final_norm_bytes,
        lm_head_bytes=own * (vocabulary * hidden * width + vocabulary * _POINTER_BYTES),
        head_flops_per_token=2.0 * vocabulary * hidden,
        tied=False,
    )


def _tapped(fields: Mapping[str, Any]) -> int:
    section = fields.get("eagle_config")
    listed = [each.get("eagle_aux_hidden_state_layer_ids") for each in (fields, section) if isinstance(each, Mapping)]
    return next((len(each) for each in listed if isinstance(each, list) and each), TAPPED_STATES)


def _measured(head: Architecture, tensors: Mapping[str, Tensor]) -> Architecture:
    """The same with the bytes of its checkpoint."""
    places = dict.fromkeys(("embedding", "head", "projection", "layers"), 0)
    for name, tensor in tensors.items():
        if not name.endswith(_IDLE):
            places[_place(name)] += loaded_bytes(name, tensor, head.weight_dtype_bytes)
    each = -(-places["layers"] // head.layers)
    return replace(
        head,
        layer_weight_bytes=(each,) * head.layers,
        layer_expert_bytes=(0,) * head.layers,
        token_embedding_bytes=places["embedding"],
        embedding_bytes=places["embedding"] + places["projection"],
        final_norm_bytes=0,
        lm_head_bytes=places["head"],
        measured=True,
        source="safetensors",
    )


def _place(name: str) -> str:
    if is_embedding(name):
        return "embedding"
    if is_lm_head(name) or name.endswith("d2t"):
        return "head"
    return "projection" if name.startswith(_PROJECTIONS) else "layers"


def _without_attention(
    config: Mapping[str, Any], method: str, dtype: str, tensors: Mapping[str, Tensor] | None
) -> Architecture:
    """Heads of Medusa or of an MLP speculator as one layer that keeps no KV cache."""
    fields = Config(config)
    hidden = fields.size("hidden_size", "emb_dim", "inner_dim")
    vocabulary = fields.size("vocab_size")
    shape = {"hidden_size": hidden, "vocab_size": vocabulary, "num_hidden_layers": 1, "num_attention_heads": 1}
    made = read_architecture({"model_type": "llama", "intermediate_size": 1, **shape}, dtype=dtype)
    if tensors is not None:
        numbers = sum(each.numbers for each in tensors.values())
    elif method == MEDUSA:
        heads = fields.count("num_heads") or fields.count("medusa_num_heads") or _MEDUSA_HEADS
        blocks = fields.count("num_hidden_layers") or fields.count("medusa_num_layers") or _MEDUSA_LAYERS
        numbers = heads * (blocks * hidden * hidden + vocabulary * hidden)
    else:
        raise BadInput("config", "says nothing of the sizes of its heads, and the checkpoint has no safetensors")
    return replace(
        made,
        name=method,
        layer_weight_bytes=(numbers * made.weight_dtype_bytes,),
        layer_kv_bytes_per_token=(0,),
        layer_fixed_kv_bytes=(0,),
        layer_flops_per_token=(2.0 * numbers,),
        layer_attention_flops_per_token=(0.0,),
        token_embedding_bytes=0,
        embedding_bytes=0,
        final_norm_bytes=0,
        lm_head_bytes=0,
        head_flops_per_token=0.0,
        writes=False,
    )
