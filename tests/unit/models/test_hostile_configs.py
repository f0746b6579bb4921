"""Configs that are wrong on purpose: one line that names the field, no traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uellm.errors import BadInput
from uellm.models import read_architecture

DATA = Path(__file__).parents[2] / "data" / "published-facts.json"
CONFIGS = [entry["config"] for entry in json.loads(DATA.read_text())["models"]]


def nested(depth: int) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    inner = whole
    for _ in range(depth):
        inner["text_config"] = inner = {}
    return whole


HYBRID = next(config for config in CONFIGS if config.get("model_type") == "falcon_h1")
CONVOLVING = {
    "model_type": "lfm2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "layer_types": ["conv", "full_attention"],
    "block_auto_adjust_ff_dim": True,
}
PICKING = {
    "architectures": ["MiniMaxM3ForCausalLM"],
    "model_type": "minimax_m3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (nested(1000), "nested more than 32 deep"),
        ({"architectures": ["LlamaForCausalLM"], "more": list(range(1_000_001))}, "more than 1,000,000 values"),
        (
            {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1e30},
            "num_hidden_layers: must be a positive",
        ),
        ({"model_type": "llama", "hidden_size": float("nan")}, "hidden_size: must be a positive whole number, not nan"),
        ({"model_type": "llama", "hidden_size": "4096" * 100_000}, "config.hidden_size: must be a positive"),
        ({"model_type": "llama", "hidden_size": -1}, "config.hidden_size: must be a positive"),
        ({"model_type": {"a": 1}}, "config.architectures"),
        *(
            ({**HYBRID, "mamba_d_ssm": value}, "mamba_d_ssm: must be a whole number")
            for value in (float("nan"), -1, "x")
        ),
        *(
            ({**CONVOLVING, "block_ffn_dim_multiplier": value}, "must be a number above 0")
            for value in (1e300, -1, "x")
        ),
        *(
            (
                {**PICKING, "sparse_attention_config": {"sparse_attention_freq": value}},
                "sparse_attention_freq: must be a",
            )
            for value in (1, True, "x", {"a": 1})
        ),
        ({**PICKING, "mlp_only_layers": [0] * 20_000}, "mlp_only_layers: has 20000 entries, but there are 2 layers"),
    ],
)
def test_a_hostile_config_is_refused_in_one_short_line(config: dict, words: str) -> None:
    with pytest.raises(BadInput) as raised:
        read_architecture(config)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_numbers_that_are_no_counts_where_a_config_has_text_or_no_bound_change_nothing() -> None:
    plain = {**CONVOLVING, "model_type": "llama", "layer_types": None}
    rope = {"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 10**400}
    assert read_architecture({**plain, "rope_scaling": rope}).max_position_embeddings == 4 * 2048
    mixture = {**plain, "num_experts": 4, "num_experts_per_tok": 2, "moe_layers_enum": "1,\u00b2," + "9" * 5000}
    assert [experts > 0 for experts in read_architecture(mixture).layer_expert_bytes] == [False, True]


HOSTILE = (None, -1, 0, 1e30, float("nan"), "x", [], [1], [None], ["a"] * 3, {}, {"a": 1}, True, 2**70, [[1]], [{}])


@pytest.mark.parametrize("seed", range(30))
def test_a_published_config_with_one_value_replaced_is_read_or_refused_in_one_line(seed: int) -> None:
    draw = random.Random(seed)
    config = json.loads(json.dumps(draw.choice(CONFIGS)))
    path = draw.choice(list(paths(config)))
    target = config
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = draw.choice(HOSTILE)
    assert "\n" not in outcome(config)


def outcome(config: dict) -> str:
    """The message of a refusal; empty where the config is read."""
    try:
        return "" if read_architecture(config).weight_bytes > 0 else "\n"
    except BadInput as error:
        return str(error)


def paths(config: dict, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from paths(value, (*before, key))
