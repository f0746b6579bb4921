"""What transformers' configuration classes assume where a config.json is silent (scripts/model_defaults.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

# A config that leaves these out is cut short: only a config inside another one may leave them to its class.
CORE = frozenset(
    (
        *("hidden_size", "d_model", "n_embd", "vocab_size", "intermediate_size", "sliding_window"),
        *("num_hidden_layers", "num_layers", "n_layer", "encoder_layers", "decoder_layers"),
        *("num_attention_heads", "n_head"),
    )
)


@cache
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(
        files("uellm.models").joinpath("defaults.json").read_text(encoding="utf-8")
    )
    return table


def class_defaults(model_type: str, *, nested: bool) -> Mapping[str, Any]:
    """The defaults of a model type's configuration class; empty for a type that transformers does not know."""
    found = _table().get(model_type, {})
    return found if nested else {name: value for name, value in found.items() if name not in CORE}
