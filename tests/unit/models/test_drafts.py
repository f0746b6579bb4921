"""Sizes of what drafts for speculation: a draft model, heads of EAGLE and their like, heads of Medusa."""

from __future__ import annotations

import pytest

from helpers.checkpoints import llama_tensors
from helpers.models import SMALLEST_LLAMA
from uellm.errors import BadInput
from uellm.models import Tensor, read_architecture
from uellm.models.drafts import missing_class, read_draft

# yuhuili/EAGLE3-LLaMA3.1-Instruct-8B: its checkpoint has 850 MB.
EAGLE3 = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "draft_vocab_size": 32000,
    "torch_dtype": "float16",
}
TINY = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
}
LAYER = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336
"""Matrices of a layer of Llama with these sizes."""
NORMS = 2 * 4096


def draft(config, method, **options):
    return read_draft(config, method, dtype="bfloat16", **options)


def test_a_draft_model_is_read_like_any_model_in_the_models_dtype():
    found = read_draft(SMALLEST_LLAMA, "draft_model", dtype="float32")
    assert found == read_architecture(SMALLEST_LLAMA, dtype="float32")
    headers = llama_tensors(SMALLEST_LLAMA)
    assert read_draft(SMALLEST_LLAMA, "draft_model", dtype="float16", tensors=headers).source == "safetensors"


def test_a_head_of_eagle3_attends_from_twice_the_width_and_has_a_vocabulary_of_its_own():
    found = draft(EAGLE3, "eagle3")
    first, projection, head = 4096 * (4096 + 2 * 1024), 3 * 4096 * 4096, 32000 * 4096
    assert found.layer_weight_bytes == (2 * (LAYER + first + NORMS + 4096),)
    assert (found.embedding_bytes, found.token_embedding_bytes) == (2 * projection, 0)
    assert found.lm_head_bytes == 2 * head + 8 * 32000
    assert found.weight_bytes == pytest.approx(850e6, rel=2e-3)
    assert found.kv_bytes_per_token == 2 * 8 * 128 * 2


def test_a_head_of_eagle_uses_the_models_embedding_and_lm_head():
    found = draft({**EAGLE3, "architectures": ["LlamaForCausalLM"], "draft_vocab_size": None}, "eagle")
    assert found.weight_bytes == 2 * (LAYER + NORMS - 4096 + 2 * 4096 * 4096)
    assert found.head_flops_per_token == 2.0 * 128256 * 4096


@pytest.mark.parametrize("where", [{}, {"eagle_config": {}}])
def test_as_many_inner_states_as_the_configuration_lists_are_projected(where):
    listed = {"eagle_aux_hidden_state_layer_ids": [1, 2, 3, 4]}
    found = draft({**EAGLE3, **({"eagle_config": listed} if where else listed)}, "eagle3")
    assert found.embedding_bytes == 2 * 4 * 4096 * 4096


def test_the_format_of_speculators_keeps_the_layers_in_a_section():
    section = {name: EAGLE3[name] for name in EAGLE3 if name not in ("architectures", "draft_vocab_size")}
    nested = {"architectures": ["Eagle3DraftModel"], "draft_vocab_size": 32000, "transformer_layer_config": section}
    assert draft(nested, "eagle3").weight_bytes == draft(EAGLE3, "eagle3").weight_bytes
    assert missing_class(nested, "eagle3") == ""
    with pytest.raises(BadInput, match=r"^config.transformer_layer_config: must be an object"):
        draft({"transformer_layer_config": 3}, "eagle3")


def test_the_bytes_of_a_head_are_those_of_its_headers():
    tensors = {
        "fc.weight": Tensor("F16", (8, 24)),
        "midlayer.self_attn.q_proj.weight": Tensor("F16", (8, 16)),
        "midlayer.mlp.up_proj.weight": Tensor("F32", (16, 8)),
        "embed_tokens.weight": Tensor("F16", (100, 8)),
        "lm_head.weight": Tensor("F16", (20, 8)),
        "d2t": Tensor("I64", (20,)),
        "t2d": Tensor("BOOL", (100,)),
    }
    found = draft(EAGLE3, "eagle3", tensors=tensors)
    assert found.layer_weight_bytes == (2 * (8 * 16 + 16 * 8),)
    assert (found.token_embedding_bytes, found.embedding_bytes) == (2 * 800, 2 * (800 + 8 * 24))
    assert found.lm_head_bytes == 2 * 160 + 8 * 20
    assert found.measured


def test_medusa_keeps_no_kv_cache():
    config = {"hidden_size": 64, "vocab_size": 100, "num_heads": 3, "num_hidden_layers": 1}
    found = draft(config, "medusa")
    assert (found.weight_bytes, found.kv_bytes_per_token) == (2 * 3 * (64 * 64 + 100 * 64), 0)
    measured = draft(config, "medusa", tensors={"0.linear.weight": Tensor("F16", (64, 64))})
    assert measured.weight_bytes == 2 * 64 * 64


def test_an_mlp_speculator_without_headers_has_no_size():
    with pytest.raises(BadInput, match="says nothing of the sizes of its heads, and the checkpoint has no safetensors"):
        draft({"emb_dim": 64, "vocab_size": 100}, "mlp_speculator")


def test_an_assistant_reads_the_models_own_cache():
    assert draft({**EAGLE3, "model_type": "gemma4_assistant"}, "mtp").kv_bytes_per_token == 0


@pytest.mark.parametrize(
    ("named", "method", "missing"),
    [
        ("LlamaForCausalLM", "eagle", ""),
        ("EagleLlamaForCausalLM", "eagle", ""),
        ("LlamaForCausalLM", "eagle3", ""),
        ("LlamaForCausalLMEagle3", "eagle3", ""),
        ("BloomForCausalLM", "eagle", "EagleBloomForCausalLM"),
        ("BloomForCausalLM", "eagle3", "Eagle3BloomForCausalLM"),
        ("BloomForCausalLM", "draft_model", ""),
    ],
)
def test_the_engine_names_its_class_after_the_method_and_may_not_have_it(named, method, missing):
    assert missing_class({"architectures": [named]}, method) == missing


@pytest.mark.parametrize(
    ("method", "changes", "weight_bytes", "kv_bytes"),
    [
        ("eagle3", {"num_hidden_layers": 1, "draft_vocab_size": 256}, 560128, 384),
        ("eagle3", {"num_hidden_layers": 2}, 788224, 768),
        ("eagle", {"num_hidden_layers": 1}, 360704, 384),
    ],
)
def test_sizes_are_those_of_the_engines_own_classes(method, changes, weight_bytes, kv_bytes):
    """Counted of vLLM 0.32's Eagle3LlamaForCausalLM and EagleLlamaForCausalLM on the meta device, without what they
    share with the model."""
    config = {**TINY, **changes}
    found = draft(config, method)
    assert (found.weight_bytes, found.kv_bytes_per_token) == (weight_bytes, kv_bytes)
