"""Tensor parallelism of quantised matrices: whole blocks and groups, as the engine's validators ask."""

from __future__ import annotations

from typing import Any

import pytest

from uellm.models import read_architecture
from uellm.planner.refusals.kinds import SplitBlocks
from uellm.planner.refusals.sentences import sentence
from uellm.planner.search.shapes import indivisible_size

# Qwen2.5-72B, whose MLP is 29568 wide.
QWEN_72B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 2,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "torch_dtype": "float16",
}
# MiniMax-M2, whose experts are 1536 wide.
MINIMAX = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "vocab_size": 200064,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "torch_dtype": "bfloat16",
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def quantised(config: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    return {**config, "quantization_config": section}


def test_groups_of_128_do_not_divide_half_of_29568_inputs() -> None:
    model = read_architecture(quantised(QWEN_72B, AWQ))
    assert indivisible_size(model, 1) is None
    assert indivisible_size(model, 2) == SplitBlocks(2, "mlp.down_proj", 14784, 128, (1,))
    assert indivisible_size(read_architecture(QWEN_72B), 2) is None


def test_blocks_of_128_do_not_divide_an_eighth_of_1536_and_the_numbers_that_would_do_are_said() -> None:
    model = read_architecture(quantised(MINIMAX, BLOCKS))
    assert all(indivisible_size(model, tensor) is None for tensor in (1, 2, 4))
    refusal = indivisible_size(model, 8)
    assert isinstance(refusal, SplitBlocks)
    assert sentence(refusal) == (
        "tensor 8 cuts mlp.experts.0.up_proj into parts of 192, which the quantisation's blocks of 128 do not divide, "
        "and vLLM refuses that; tensor 1, 2, 3, 4, 6, 12 would do"
    )


def test_a_matrix_that_is_left_out_of_the_quantisation_has_no_limit() -> None:
    section = {**AWQ, "modules_to_not_convert": ["down_proj"]}
    assert indivisible_size(read_architecture(quantised(QWEN_72B, section)), 2) is None


@pytest.mark.parametrize("tensor", [8, 16])
def test_kv_heads_of_64_fill_no_block_of_128_once_each_gpu_has_one(tensor: int) -> None:
    config = {**QWEN_72B, "intermediate_size": 32768, "head_dim": 64}
    refusal = indivisible_size(read_architecture(quantised(config, BLOCKS)), tensor)
    assert isinstance(refusal, SplitBlocks)
    assert (refusal.matrix, refusal.part) == ("self_attn.k_proj", 64)


def test_the_engine_narrows_the_groups_of_experts_until_they_fit() -> None:
    model = read_architecture(quantised(MINIMAX, {"quant_method": "gptq", "bits": 4, "group_size": 128}))
    assert indivisible_size(model, 8) is None
