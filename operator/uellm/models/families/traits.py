"""What a model family has that its config.json does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uellm.models.fields import Config

Switch = bool | str
"""Whether a part is there: always, never, or as a field of the config says (false where it is left out)."""


@dataclass(frozen=True, slots=True)
class Traits:
    """The parts of a decoder layer, and of what lies around the layers."""

    norms: int = 2
    """Norms of the hidden size in a layer with an MLP."""
    layer_norm: bool = False
    """LayerNorm, which has a bias as wide as its weight; otherwise RMSNorm."""
    norm_weight: bool = True
    """False: norms without parameters."""
    final_norm: bool = True
    embedding_norm: bool = False
    query_key_norm: str = ""
    """Norms of queries and keys: `width` (one over a head's width), `heads` (each head's own), `all` (all heads
    together); empty: none."""
    query_key_norm_if: str = ""
    """The field that switches them on; empty: they are always there."""
    qkv_bias: Switch = "attention_bias"
    output_bias: Switch = "attention_bias"
    mlp_bias: Switch = "mlp_bias"
    gated: bool = True
    """Gate, up and down; otherwise up and down."""
    output_gate: Switch = False
    """Queries come with a gate as wide as they are; in latent attention it is as wide as the values."""
    latent_expanded: bool = False
    """The engine keeps the keys and values of every head that latent attention makes, not what they are made of."""
    head_gate: str = ""
    """The field that says whether there is a gate behind each head, or behind each of its numbers."""
    sinks: bool = False
    """A number a head that attention may fall back on."""
    tied: bool = False
    head_bias: bool = False
    positions: tuple[str, ...] = ()
    """The fields that give the rows of a learned position embedding; empty: there is none."""
    position_offset: int = 0
    """Rows of that embedding that no position uses."""
    slides: bool = False
    """All layers slide where the config gives a window and no kinds of layers."""
    window_pattern: int = 0
    """Every n-th layer attends to everything where the config gives a window and no pattern."""
    window_more: int = 0
    """Tokens that a window keeps beyond those of the config."""
    full_first: bool = False
    """It is the first of every n layers that attends to everything, not the last."""
    attention_interval: int = 0
    """Every n-th layer has softmax attention where the config does not say which."""
    corrected: Switch = False
    """A number an expert that balances them, in 32 bits."""
    shared_gate: bool = False
    """A gate of one number before the shared expert."""
    expert_bias: bool = False
    router_bias: bool = False
    wide_router: bool = False
    """The router's weights are in 32 bits."""
    independent_connections: bool = False
    """Copies of the hidden state are mixed without a matrix between them (HY 4)."""
    gated_experts: bool = True
    dense_width: tuple[str, ...] = ()
    """The fields of the dense layers' width, where it is not intermediate_size."""
    layer_path: str = "model.layers"
    without_mlp: bool = False
    """Layers that mix tokens have no MLP; intermediate_size is the mixer's own width."""
    side_by_side: bool = False
    """Attention and Mamba read the same input in every layer."""
    half_width: bool = False
    """intermediate_size is the width of gate and up together."""
    pooler: bool = False
    """The checkpoint has a dense layer for the first token, which the engine does not load for an embedder."""
    encoder: bool = False
    """Attends in both directions and keeps no KV cache."""
    other_embedding: tuple[str, ...] = ()
    """Further embedding tables: the fields of their rows."""
    defaults: Mapping[str, int] | None = None
    """Fields that the family's own configuration class assumes, for families that transformers does not know."""
    note: str = ""
    """Why the count is not exact."""

    def has(self, config: Config, switch: Switch) -> bool:
        """Whether a part is there."""
        return switch if isinstance(switch, bool) else any(config.flag(name, default=False) for name in switch.split())
