"""Parameter counts of published models, computed from their config.json (tests/data/published-models.json)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uellm.models import read_architecture

TABLE = json.loads((Path(__file__).parents[2] / "data" / "published-models.json").read_text())
MODELS = TABLE["models"]
TOLERANCE = 0.005


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry["name"])
def test_the_parameters_are_those_published(entry: dict) -> None:
    assert read_architecture(entry["config"]).parameters == pytest.approx(entry["parameters"], rel=TOLERANCE)


def test_the_table_has_at_least_25_models_of_many_families_with_a_source_each() -> None:
    assert len(MODELS) >= 25
    assert len({entry["config"]["architectures"][0] for entry in MODELS}) >= 15
    assert all(entry["source"] in TABLE["sources"] for entry in MODELS)


def test_counts_that_are_published_to_the_last_digit_are_met_to_the_last_digit() -> None:
    exact = [entry for entry in MODELS if read_architecture(entry["config"]).parameters == entry["parameters"]]
    # The other counts are rounded, or include RoPE tables that old checkpoints of Llama 2 contain.
    assert len(exact) >= len(MODELS) - 4


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry["name"])
def test_the_bytes_of_the_parts_are_the_parameters_in_16_bits(entry: dict) -> None:
    model = read_architecture(entry["config"])
    # DeepSeek V3 stores a 32-bit bias for each expert.
    wide = sum(model.experts for experts in model.layer_expert_bytes if experts and "V3" in model.name)
    assert model.weight_bytes == 2 * model.parameters + 2 * wide
    assert len(model.layer_weight_bytes) == len(model.layer_kv_bytes_per_token) == model.layers


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        # As in their model cards and reports.
        ("mistralai/Mixtral-8x7B-v0.1", 12.9),
        ("mistralai/Mixtral-8x22B-v0.1", 39.0),
        ("Qwen/Qwen3-30B-A3B", 3.3),
        ("Qwen/Qwen3-235B-A22B", 22.0),
        ("Qwen/Qwen1.5-MoE-A2.7B", 2.7),
        ("meta-llama/Llama-4-Scout-17B-16E", 17.0),
        ("deepseek-ai/DeepSeek-V2", 21.0),
        ("deepseek-ai/DeepSeek-V3", 37.0),
    ],
)
def test_the_parameters_that_a_token_uses_are_those_published(name: str, billions: float) -> None:
    entry = next(entry for entry in MODELS if entry["name"] == name)
    assert read_architecture(entry["config"]).active_parameters / 1e9 == pytest.approx(billions, rel=0.02)
