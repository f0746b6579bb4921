"""Models whose layers have other heads than their neighbours, and gates or sinks behind them."""

from __future__ import annotations

import pytest

from uellm.errors import BadInput
from uellm.models import read_architecture

COMMON = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1024,
    "sliding_window": 128,
    "layer_types": ["full_attention", *["sliding_attention"] * 3],
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def layers_of(config: dict) -> list[int]:
    """Numbers of each layer."""
    return [size // 2 for size in read_architecture(config).layer_weight_bytes]


def test_laguna_has_a_number_of_heads_for_each_layer_and_a_gate_behind_each() -> None:
    laguna = {**COMMON, **EXPERTS, "architectures": ["LagunaForCausalLM"], "model_type": "laguna", "gating": "per-head"}
    laguna |= {"mlp_layer_types": ["dense", *["sparse"] * 3], "shared_expert_intermediate_size": 64}
    laguna |= {"num_attention_heads_per_layer": [4, 6, 6, 6]}
    model = read_architecture(laguna)
    dense, *sparse = layers_of(laguna)
    # Queries and the output, keys and values, gates; two norms of 32 numbers and two of 256.
    four, six = (256 * 32 * (2 * heads + 4) + 256 * heads + 2 * 32 + 2 * 256 for heads in (4, 6))
    assert dense == four + 3 * 256 * 512
    # A router, whose corrections are in 32 bits; experts, and the shared one.
    assert sparse == [six + 8 * 256 + 2 * 8 + 9 * 3 * 256 * 64] * 3
    assert dict(model.tensor_widths)["heads of every layer"] == 2
    assert (model.kv_heads, model.exact) == (2, True)
    wide = {**laguna, "gating": "per-element"}
    assert layers_of(wide)[0] - dense == 256 * (4 * 32 - 4)
    with pytest.raises(BadInput, match=r"config\.gating: must be true, false, per-head or per-element, not 'half'"):
        read_architecture({**laguna, "gating": "half"})
    with pytest.raises(BadInput, match=r"config\.num_attention_heads_per_layer: has 2 entries"):
        read_architecture({**laguna, "num_attention_heads_per_layer": [4, 4]})


def test_step_has_a_section_for_the_heads_of_one_kind_of_layer() -> None:
    step = {**COMMON, "architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5", "num_attention_groups": 2}
    del step["num_key_value_heads"]
    step |= {"moe_num_experts": 8, "moe_top_k": 2, "moe_intermediate_size": 64, "share_expert_dim": 96}
    step |= {"use_head_wise_attn_gate": True, "moe_layers_enum": "2,3", "num_nextn_predict_layers": 2}
    other = {"attention_type": "sliding_attention", "num_attention_heads": 6, "num_attention_groups": 2, "head_dim": 32}
    # Its list of kinds goes on with the layers for multi-token prediction.
    step |= {"attention_other_setting": other, "layer_types": [*COMMON["layer_types"], *["sliding_attention"] * 2]}
    first, second, third, _ = layers_of(step)
    four, six = (256 * 32 * (2 * heads + 4) + 256 * heads + 2 * 32 + 2 * 256 for heads in (4, 6))
    assert (first, second) == (four + 3 * 256 * 512, six + 3 * 256 * 512)
    # The router and its corrections are in 32 bits.
    assert third == six + 2 * (8 * 256 + 8) + 8 * 3 * 256 * 64 + 3 * 256 * 96
    with pytest.raises(BadInput, match=r"config\.layer_types: has 6 entries, but there are 4 layers"):
        read_architecture({**step, "num_nextn_predict_layers": 1})


def test_mimo_v2_has_other_heads_values_and_sinks_in_layers_with_a_window() -> None:
    mimo = {**COMMON, "architectures": ["MiMoV2FlashForCausalLM"], "model_type": "mimo_v2_flash", "v_head_dim": 16}
    mimo |= {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "moe_layer_freq": [0, 1, 1, 1],
    }
    mimo |= {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 32, "swa_v_head_dim": 16}
    mimo |= {"hybrid_layer_pattern": [0, 1, 1, 1], "add_swa_attention_sink_bias": True, "sliding_window": None}
    del mimo["layer_types"]
    mimo["sliding_window_size"] = 128
    model = read_architecture(mimo)
    assert model.layer_window_tokens == (None, 128, 128, 128)
    assert model.layer_kv_bytes_per_token == (2 * 2 * (32 + 16), *[2 * 4 * (32 + 16)] * 3)
    first, second, *_ = layers_of(mimo)
    assert first == 256 * (4 * 32 + 2 * 32 + 2 * 16 + 4 * 16) + 3 * 256 * 512 + 2 * 256
    assert second == 256 * (4 * 32 + 4 * 32 + 4 * 16 + 4 * 16) + 4 + 2 * (8 * 256 + 8) + 8 * 3 * 256 * 64 + 2 * 256
    assert model.kv_heads == 2


def test_minimax_m3_picks_blocks_of_tokens_with_an_indexer_in_its_sparse_layers() -> None:
    plain = {**COMMON, **EXPERTS, "architectures": ["MiniMaxM3ForCausalLM"], "model_type": "minimax_m3"}
    plain |= {"layer_types": None, "sliding_window": None}
    section = {"sparse_attention_freq": [0, 1, 1, 1], "sparse_num_index_heads": 2, "sparse_index_dim": 16}
    sparse = {**plain, "sparse_attention_config": section}
    more = [few - none for few, none in zip(layers_of(sparse), layers_of(plain), strict=True)]
    assert more == [0, *[256 * 16 * 3 + 2 * 16] * 3]
    kept = [read_architecture(each).layer_kv_bytes_per_token for each in (plain, sparse)]
    assert [with_keys - none for none, with_keys in zip(*kept, strict=True)] == [0, 32, 32, 32]
    # It picks them for grouped attention, whose kernels run on all GPUs: that is no sparse MLA.
    assert not read_architecture(sparse).sparse_attention
