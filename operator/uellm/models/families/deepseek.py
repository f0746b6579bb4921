"""DeepSeek V2, V2-Lite, V3 and R1: latent attention (MLA), and experts after the first dense layers.

The cache has one latent vector and one rotated key per token, kv_lora_rank + qk_rope_head_dim numbers. All heads share
them, so tensor parallelism does not divide the cache. The FLOPs of attention are those of the plain form, which prefill
computes. Decoding in latent space needs more of them, but is limited by memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from uellm.models.families.parts import Experts, experts, gated_mlp, routed
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix

BIAS_CORRECTED = "noaux_tc"  # the `topk_method` with a bias per expert that balances them


@dataclass(frozen=True, slots=True)
class _Latent:
    heads: int
    rank: int
    rope: int
    nope: int
    value: int
    query_rank: int
    """0: queries are computed directly from the hidden state."""


def deepseek_v2(config: Config) -> Blueprint:
    """DeepSeek V2, V2-Lite and V2.5."""
    return _deepseek(config, corrected=config.fields.get("topk_method") == BIAS_CORRECTED)


def deepseek_v3(config: Config) -> Blueprint:
    """DeepSeek V3, V3.1 and R1. Plain serving does not use the layers of multi-token prediction."""
    extra = config.count("num_nextn_predict_layers") or config.count("num_mtp_layers")
    notes = (f"{extra} layer(s) for multi-token prediction are not counted: only speculation uses them",)
    return _deepseek(config, corrected=True, notes=notes if extra else ())


def _deepseek(config: Config, *, corrected: bool, notes: tuple[str, ...] = ()) -> Blueprint:
    hidden, layers, ffn = config.size("hidden_size"), config.layers(), config.size("intermediate_size")
    latent = _latent(config)
    mixture = experts(config, "n_routed_experts", "moe_intermediate_size")
    shared = config.count("n_shared_experts") * mixture.width
    base, norms = _attention(config, hidden, latent)
    sparse = base + routed(hidden, mixture)
    if shared:
        sparse += gated_mlp(hidden, shared, path="mlp.shared_experts")
    dense = base + gated_mlp(hidden, ffn)
    flops = 2.0 * latent.heads * (latent.nope + latent.rope + latent.value)
    kv = latent.rank + latent.rope
    other = 2 * hidden + norms
    first = config.count("first_k_dense_replace")
    every = config.size("moe_layer_freq", default=1)
    moe = Layer(sparse, other, kv, flops, float32=mixture.total * corrected)
    plain = Layer(dense, other, kv, flops)
    return Blueprint(
        layers=tuple(moe if index >= first and index % every == 0 else plain for index in range(layers)),
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=max(ffn, mixture.width * mixture.per_token + shared),
        vocab_size=config.size("vocab_size"),
        attention_heads=latent.heads,
        kv_heads=1,
        head_dim=latent.rank + latent.rope,
        final_norm=hidden,
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.longest(),
        experts=mixture.total,
        experts_per_token=mixture.per_token,
        kv_shared_by_tensor=False,
        tensor_widths=_widths(ffn, mixture),
        notes=notes,
    )


def _widths(ffn: int, mixture: Experts) -> tuple[tuple[str, int], ...]:
    return ("intermediate_size", ffn), (mixture.field, mixture.width)


def _latent(config: Config) -> _Latent:
    return _Latent(
        heads=config.size("num_attention_heads"),
        rank=config.size("kv_lora_rank"),
        rope=config.size("qk_rope_head_dim"),
        nope=config.size("qk_nope_head_dim"),
        value=config.size("v_head_dim"),
        query_rank=config.count("q_lora_rank"),
    )


def _attention(config: Config, hidden: int, of: _Latent) -> tuple[tuple[WeightMatrix, ...], int]:
    """The matrices of attention, and the numbers of the norms inside it."""
    bias = config.flag("attention_bias", default=False)
    queries = of.heads * (of.nope + of.rope)
    if of.query_rank:
        query: tuple[WeightMatrix, ...] = (
            WeightMatrix("self_attn.q_a_proj", of.query_rank, hidden, bias),
            WeightMatrix("self_attn.q_b_proj", queries, of.query_rank),
        )
    else:
        query = (WeightMatrix("self_attn.q_proj", queries, hidden),)
    rest = (
        WeightMatrix("self_attn.kv_a_proj_with_mqa", of.rank + of.rope, hidden, bias),
        WeightMatrix("self_attn.kv_b_proj", of.heads * (of.nope + of.value), of.rank),
        WeightMatrix("self_attn.o_proj", hidden, of.heads * of.value, bias),
    )
    return query + rest, of.rank + of.query_rank
