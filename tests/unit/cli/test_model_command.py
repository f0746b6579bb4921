"""`uellm model`: the table and the JSON document."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from uellm.cli.main import main

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "torch_dtype": "float16",
}
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
GEMMA = {
    "architectures": ["Gemma2ForCausalLM"],
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
}


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = main(["model", *args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def written(tmp_path: Path, config: dict) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def test_the_table_groups_layers_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, written(tmp_path, DEEPSEEK))
    assert status == 0
    rows = [line.split("  ")[0] for line in out.splitlines()]
    assert "layers 0-2" in rows
    assert "layers 3-60" in rows
    assert "MoE, 8 of 256" in out
    assert "671,026,419,200 (37,552,297,472 for a token)" in out


def test_alternating_layers_are_one_line_per_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, written(tmp_path, GEMMA))
    assert "layers 0, 2, 4, 6 ... 24 (13)  dense, window 4,096" in out
    assert "layers 1, 3, 5, 7 ... 25 (13)  dense" in out
    assert "106,496 bytes a token, 53,248 beyond the windows" in out
    assert "tied to the embedding" in out


def test_json_has_the_contracts_fields_and_an_entry_a_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, written(tmp_path, DEEPSEEK), "-o", "json")
    document = json.loads(out)
    assert document["layers"] == 61
    ends = document["embeddingBytes"] + document["finalNormBytes"] + document["lmHeadBytes"]
    assert document["weightBytes"] == sum(document["layerWeightBytes"]) + ends
    assert document["kvBytesPerToken"] == sum(document["layerKvBytesPerToken"]) == 61 * 2 * 576
    assert document["activeParameters"] < document["parameters"]
    assert document["source"] == "config"


def test_a_directory_is_read_with_the_headers_of_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, LLAMA)
    extra = {"model.layers.0.extra.weight": np.zeros(7, np.float16)}
    save_file({"model.embed_tokens.weight": np.zeros((32, 16), np.float16), **extra}, tmp_path / "model.safetensors")
    _, out, _ = run(capsys, str(tmp_path), "-o", "json")
    document = json.loads(out)
    assert document["source"] == "safetensors"
    assert document["layerWeightBytes"] == [14]
    assert "from the safetensors headers" in run(capsys, str(tmp_path))[1]


def test_weights_may_be_in_another_directory_than_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    tensors = {"model.embed_tokens.weight": np.zeros((32, 16)), "model.layers.0.a.weight": np.zeros(3)}
    save_file(tensors, weights / "model.safetensors")
    _, out, _ = run(capsys, written(tmp_path, LLAMA), "--safetensors", str(weights), "-o", "json")
    assert json.loads(out)["layerWeightBytes"] == [6]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": -4}, "config.hidden_size: must be a positive whole number"),
        ({"architectures": ["Nope"]}, "'Nope' is not known here"),
    ],
)
def test_an_error_is_one_line_and_exit_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, words: str
) -> None:
    status, out, err = run(capsys, written(tmp_path, {**LLAMA, **change}))
    assert status == 2
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_directory_without_a_config_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, str(tmp_path))
    assert status == 2
    assert "config.json: cannot be read" in err
