"""LoRA slots in a plan: their bytes, the engine's flags, and when they suffice."""

from __future__ import annotations

import dataclasses

import pytest

from uellm.models import read_architecture
from uellm.planner.adapter_slots import AdapterSlots, covers, slots_for
from uellm.planner.memory.adapters import adapter_bytes

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}
SLOTS = AdapterSlots(2, 16)


def test_slots_are_the_tensors_that_vllm_allocates():
    # vLLM 0.32's own, of this model: qkv 73728, o 32768, gate and up 98304, down 49152; embedding and head 80384 each.
    found = adapter_bytes(read_architecture(TINY), SLOTS, 1)
    assert (found.layers, found.first, found.last) == ((253952, 253952), 80384, 80384)


def test_a_class_whose_embedding_takes_no_adapters_has_none_there():
    found = adapter_bytes(read_architecture({**TINY, "architectures": ["MistralForCausalLM"]}), SLOTS, 1)
    assert (found.layers, found.first, found.last) == ((253952, 253952), 0, 0)


def test_an_embedder_has_no_slots_at_an_lm_head():
    found = adapter_bytes(read_architecture(TINY, task="Embed"), SLOTS, 1)
    assert (found.layers, found.first, found.last) == ((253952, 253952), 80384, 0)


def test_tensor_parallelism_divides_one_side_of_each_matrix_and_kv_heads_down_to_one():
    model = read_architecture(TINY)
    unit = 2 * 16 * 2
    # A of q, k, v, gate and up, and B of o and down are whole; q 256, gate, up and down 512 and o 256 are divided.
    whole, divided, kv = 5 * 256 + 2 * 256, 256 + 2 * 512 + 256 + 512, 2 * 64
    for tensor, heads in ((1, 2), (2, 1), (4, 1)):
        expected = unit * (whole + divided // tensor + kv * heads // 2)
        assert adapter_bytes(model, SLOTS, tensor).layers == (expected, expected)
    assert adapter_bytes(model, SLOTS, 4).first == adapter_bytes(model, SLOTS, 1).first


def test_experts_have_slots_of_their_own():
    moe = {**TINY, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 32}
    moe |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    found, attention = adapter_bytes(read_architecture(moe), SLOTS, 1), 73728 + 32768
    router = 2 * 16 * 2 * (256 + 8)
    experts = 2 * 16 * 2 * 8 * 3 * (256 + 128)
    assert found.layers == (attention + router + experts,) * 2


@pytest.mark.parametrize(
    ("adapters", "rank", "expected"),
    [
        (1, 8, AdapterSlots(4, 8)),
        (4, 9, AdapterSlots(4, 16)),
        (5, 1, AdapterSlots(8, 1)),
        (20, 300, AdapterSlots(8, 320)),
        (64, 512, AdapterSlots(8, 512)),
    ],
)
def test_there_are_slots_to_spare_and_ranks_are_vllms(adapters, rank, expected):
    assert slots_for(adapters, rank) == expected


def test_fewer_slots_or_a_smaller_rank_do_not_suffice():
    assert covers(AdapterSlots(8, 64), AdapterSlots(4, 16))
    assert not covers(AdapterSlots(4, 64), AdapterSlots(8, 16))
    assert not covers(AdapterSlots(8, 16), AdapterSlots(8, 32))
    assert not covers(None, AdapterSlots(4, 8))


def test_a_model_without_slots_takes_no_memory_for_them():
    assert adapter_bytes(read_architecture(TINY), None, 1).total == 0
    assert dataclasses.astuple(adapter_bytes(read_architecture(TINY), None, 1)) == ((0, 0), 0, 0)
