"""Models of many families, quantised ones among them, by their configs (tests/data/published-facts.json)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uellm.models import read_architecture

TABLE = json.loads((Path(__file__).parents[2] / "data" / "published-facts.json").read_text())
MODELS = TABLE["models"]
TOLERANCE = 0.005
BY_NAME = {entry["name"]: entry["config"] for entry in MODELS}


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry["name"])
def test_the_parameters_are_those_published(entry: dict) -> None:
    assert read_architecture(entry["config"]).parameters == pytest.approx(entry["parameters"], rel=TOLERANCE)


def test_every_entry_names_a_source_that_the_table_describes() -> None:
    assert all(entry["source"] in TABLE["sources"] for entry in MODELS)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        # A scale in 8 bits for 16 numbers; one scale a row or matrix; 20 bits of scale and zero point for 128 numbers.
        ("RH-Llama-3.3-70B-NVFP4", 4.5),
        ("RH-Llama-3.3-70B-FP8-dynamic", 8),
        ("AMD-quark-Llama-3.1-70B-FP8", 8),
        ("autoround-Qwen2.5-7B-int4", 4 + 20 / 128),
    ],
)
def test_a_quantised_checkpoint_weighs_what_its_widths_make(name: str, bits: float) -> None:
    model = read_architecture(BY_NAME[name])
    ends = 2 * model.vocab_size * model.hidden_size
    assert model.weight_bytes == pytest.approx((model.parameters - ends) * bits / 8 + 2 * ends, rel=0.002)


@pytest.mark.parametrize(
    ("name", "layers_with_kv", "state_bytes"),
    [
        # 36 of 48 layers: 3 x 8192 numbers of convolution and 32 x 128 x 128 of state, two bytes each.
        ("Qwen3-Next-80B-A3B", 12, 36 * 2 * (3 * 8192 + 32 * 128 * 128)),
        # 28 of 32 layers: 3 x 8192 and 8192 x 16 numbers.
        ("Jamba-v0.1", 4, 28 * 2 * (3 * 8192 + 8192 * 16)),
        # Every layer has both: 3 x (1024 + 2 x 256) and 128 x 8 x 256 numbers.
        ("Falcon-H1-default", 32, 32 * 2 * (3 * 1536 + 128 * 8 * 256)),
    ],
)
def test_a_layer_without_attention_keeps_a_constant_state(name: str, layers_with_kv: int, state_bytes: int) -> None:
    model = read_architecture(BY_NAME[name])
    assert sum(kv > 0 for kv in model.layer_kv_bytes_per_token) == layers_with_kv
    assert model.state_bytes == state_bytes


def test_gemma_3n_reads_the_keys_and_values_of_earlier_layers_in_its_last_ones() -> None:
    model = read_architecture(BY_NAME["gemma-3n-E4B"])
    assert model.layer_kv_bytes_per_token == (2 * 2 * 256 * 2,) * 20 + (0,) * 15


def test_an_fp8_kv_cache_that_the_checkpoint_declares_takes_one_byte_a_number() -> None:
    config = BY_NAME["Qwen3-32B-FP8-Static"]
    plain = {**config, "quantization_config": {**config["quantization_config"], "kv_cache_scheme": None}}
    assert 2 * read_architecture(config).kv_bytes_per_token == read_architecture(plain).kv_bytes_per_token


def test_deepseek_v4_keeps_a_window_and_what_its_compressors_read_beside_compressed_tokens() -> None:
    model = read_architecture(BY_NAME["DeepSeek-V4-Flash"])
    assert model.sparse_attention
    kept = [tuple((each.bytes_per_token, each.tokens) for each in caches) for caches in model.layer_recent]
    assert kept[:2] == [(), ()]  # they have the window alone
    # 584 bytes of a token of the window; a value and a score of 512 numbers, and of the indexer's 128, twice where
    # groups overlap.
    assert set(kept[2:]) == {((584, 128), (2 * 2 * 640 * 4, 8)), ((584, 128), (2 * 512 * 4, 128))}
