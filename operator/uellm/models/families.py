"""The families of dense decoders whose bytes are known, each as the shapes of its weights.

A family returns `Shapes`: for one layer the weights of its linear maps (which quantisation shrinks) and the rest
(norms, biases), and what lies before and after the layers. Sources: the modelling files of `transformers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uellm.errors import BadInput
from uellm.models.fields import Config

OPT_POSITION_OFFSET = 2  # OPTLearnedPositionalEmbedding keeps two rows that no position uses


@dataclass(frozen=True, slots=True)
class Shapes:
    """Weights counted (not bytes). `layer_linear` are matrices; `layer_other` norms and biases."""

    layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    layer_linear: int
    layer_other: int
    token_embedding: int
    other_embedding: int
    final_norm: int
    tied: bool
    max_position_embeddings: int
    lm_head_width: int
    windows: tuple[int | None, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Attention:
    heads: int
    kv_heads: int
    head_dim: int
    weights: int
    qkv_bias: int


def _attention(config: Config, hidden: int) -> _Attention:
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise BadInput(
            f"{config.prefix}.num_key_value_heads", f"{kv_heads} does not divide num_attention_heads {heads}"
        )
    if config.fields.get("head_dim") is None and hidden % heads:
        raise BadInput(f"{config.prefix}.num_attention_heads", f"{heads} does not divide hidden_size {hidden}")
    head_dim = config.size("head_dim", default=hidden // heads)
    query, kv = heads * head_dim, kv_heads * head_dim
    return _Attention(heads, kv_heads, head_dim, hidden * (query + 2 * kv) + query * hidden, query + 2 * kv)


def _gated(config: Config, *, qkv_bias: bool, output_bias: bool, mlp_bias: bool) -> Shapes:
    """Llama's block: RMSNorm, grouped-query attention, RMSNorm, gated MLP of three matrices."""
    hidden, ffn = config.size("hidden_size"), config.size("intermediate_size")
    vocab = config.size("vocab_size")
    attention = _attention(config, hidden)
    biases = attention.qkv_bias * qkv_bias + hidden * output_bias + (2 * ffn + hidden) * mlp_bias
    layers = config.layers()
    window = config.size("sliding_window", default=0) if config.fields.get("sliding_window") else 0
    used = window and config.flag("use_sliding_window", default=True)
    note = f"sliding_window {window} is ignored: KV cache is planned for the full length"
    return Shapes(
        layers=layers,
        hidden_size=hidden,
        intermediate_size=ffn,
        vocab_size=vocab,
        attention_heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        layer_linear=attention.weights + 3 * hidden * ffn,
        layer_other=2 * hidden + biases,
        token_embedding=vocab * hidden,
        other_embedding=0,
        final_norm=hidden,
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.longest(),
        lm_head_width=hidden,
        windows=(window if used else None,) * layers,
        notes=(note,) if used else (),
    )


def llama(config: Config) -> Shapes:
    """Llama 1 to 3; `attention_bias` covers q, k, v and o."""
    bias = config.flag("attention_bias", default=False)
    return _gated(config, qkv_bias=bias, output_bias=bias, mlp_bias=config.flag("mlp_bias", default=False))


def qwen2(config: Config) -> Shapes:
    """Qwen2 and Qwen2.5: Llama with biases on q, k and v alone."""
    return _gated(config, qkv_bias=True, output_bias=False, mlp_bias=False)


def mistral(config: Config) -> Shapes:
    """Mistral 7B and its dense successors: Llama without biases."""
    return _gated(config, qkv_bias=False, output_bias=False, mlp_bias=False)


def opt(config: Config) -> Shapes:
    """OPT: learned positions, LayerNorm with bias, a plain MLP; 350M embeds in half the width and has no final norm."""
    hidden, ffn = config.size("hidden_size"), config.size("ffn_dim")
    vocab, positions = config.size("vocab_size"), config.size("max_position_embeddings")
    width = config.size("word_embed_proj_dim", default=hidden)
    attention = _attention(config, hidden)
    bias = config.flag("enable_bias", default=True)
    affine = config.flag("layer_norm_elementwise_affine", default=True)
    norm = 2 * hidden * affine
    final = config.flag("do_layer_norm_before", default=True) and not config.flag("_remove_final_layer_norm", False)
    layers = config.layers()
    projections = 0 if width == hidden else 2 * width * hidden
    return Shapes(
        layers=layers,
        hidden_size=hidden,
        intermediate_size=ffn,
        vocab_size=vocab,
        attention_heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        layer_linear=attention.weights + 2 * hidden * ffn,
        layer_other=2 * norm + (attention.qkv_bias + 2 * hidden + ffn) * bias,
        token_embedding=vocab * width,
        other_embedding=(positions + OPT_POSITION_OFFSET) * hidden + projections,
        final_norm=norm * final,
        tied=config.flag("tie_word_embeddings", default=True),
        max_position_embeddings=positions,
        lm_head_width=width,
        windows=(None,) * layers,
    )


@dataclass(frozen=True, slots=True)
class Family:
    """How a family is recognised and read."""

    model_type: str
    architecture: str
    read: Callable[[Config], Shapes]


FAMILIES = (
    Family("llama", "LlamaForCausalLM", llama),
    Family("qwen2", "Qwen2ForCausalLM", qwen2),
    Family("mistral", "MistralForCausalLM", mistral),
    Family("opt", "OPTForCausalLM", opt),
)
