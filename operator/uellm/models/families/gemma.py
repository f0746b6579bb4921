"""Gemma 1 to 3, text: a head width of its own, and tied embeddings (scaled, which needs no weights)."""

from __future__ import annotations

from collections.abc import Sequence

from uellm.models.families.dense import decoder, linear_maps
from uellm.models.families.parts import FULL, SLIDING
from uellm.models.fields import Config
from uellm.models.weights import Blueprint

GEMMA2_EVERY = 2  # every second layer attends to everything
GEMMA3_EVERY = 6
# The defaults of transformers' Gemma3TextConfig; the published text_config only names differences from them.
GEMMA3_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}


def _gemma(config: Config, norms: int, kinds: Sequence[str], *, head_norms: bool = False) -> Blueprint:
    bias = config.flag("attention_bias", default=False)
    linears = linear_maps(config, qkv_bias=bias, output_bias=bias)
    return decoder(config, linears, kinds, norms=norms, head_norms=head_norms, tied=True)


def _full_every(layers: int, every: int) -> list[str]:
    return [FULL if (index + 1) % every == 0 else SLIDING for index in range(layers)]


def gemma(config: Config) -> Blueprint:
    """Gemma 1: two norms a layer."""
    return _gemma(config, 2, [FULL] * config.layers())


def gemma2(config: Config) -> Blueprint:
    """Gemma 2: four norms a layer; every second layer has a sliding window, beginning with the first."""
    return _gemma(config, 4, _full_every(config.layers(), GEMMA2_EVERY))


def gemma3(config: Config) -> Blueprint:
    """Gemma 3: additional norms over each head's query and key; every sixth layer attends to everything."""
    every = config.size("sliding_window_pattern", default=GEMMA3_EVERY)
    return _gemma(config, 4, _full_every(config.layers(), every), head_norms=True)
