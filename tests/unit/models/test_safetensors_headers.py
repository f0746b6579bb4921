"""The headers of real safetensors files, and bytes by layer from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from uellm.errors import BadInput
from uellm.models import Architecture, Tensor, find_tensors, read_architecture, read_directory

HIDDEN, FFN, VOCAB, LAYERS = 16, 24, 40, 3
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "torch_dtype": "float16",
}


def layer(index: int, dtype: type = np.float16) -> dict[str, np.ndarray]:
    at = f"model.layers.{index}"
    return {
        f"{at}.self_attn.q_proj.weight": np.zeros((HIDDEN, HIDDEN), dtype),
        f"{at}.self_attn.k_proj.weight": np.zeros((HIDDEN // 2, HIDDEN), dtype),
        f"{at}.self_attn.v_proj.weight": np.zeros((HIDDEN // 2, HIDDEN), dtype),
        f"{at}.self_attn.o_proj.weight": np.zeros((HIDDEN, HIDDEN), dtype),
        f"{at}.mlp.gate_proj.weight": np.zeros((FFN, HIDDEN), dtype),
        f"{at}.mlp.up_proj.weight": np.zeros((FFN, HIDDEN), dtype),
        f"{at}.mlp.down_proj.weight": np.zeros((HIDDEN, FFN), dtype),
        f"{at}.input_layernorm.weight": np.zeros(HIDDEN, dtype),
        f"{at}.post_attention_layernorm.weight": np.zeros(HIDDEN, dtype),
    }


def whole(dtype: type = np.float16) -> dict[str, np.ndarray]:
    tensors = {
        "model.embed_tokens.weight": np.zeros((VOCAB, HIDDEN), dtype),
        "model.norm.weight": np.zeros(HIDDEN, dtype),
        "lm_head.weight": np.zeros((VOCAB, HIDDEN), dtype),
    }
    for index in range(LAYERS):
        tensors |= layer(index, dtype)
    return tensors


def measured(tmp_path: Path, tensors: dict[str, np.ndarray], **fields: object) -> Architecture:
    save_file(tensors, tmp_path / "model.safetensors")
    return read_architecture({**CONFIG, **fields}, tensors=read_directory(tmp_path))


def parts(model: Architecture) -> tuple[object, ...]:
    ends = (model.embedding_bytes, model.token_embedding_bytes, model.final_norm_bytes, model.lm_head_bytes)
    return (model.layer_weight_bytes, model.layer_expert_bytes, *ends, model.parameters)


def test_a_real_checkpoint_has_the_bytes_of_the_formula(tmp_path: Path) -> None:
    found = measured(tmp_path, whole())
    assert found.measured
    assert parts(found) == parts(read_architecture(CONFIG))
    assert found.layer_flops_per_token == read_architecture(CONFIG).layer_flops_per_token
    assert found.notes == ()


def test_a_checkpoint_of_another_dtype_counts_as_the_engine_holds_it(tmp_path: Path) -> None:
    assert parts(measured(tmp_path, whole(np.float32))) == parts(read_architecture(CONFIG))


def test_the_files_of_an_index_are_read_and_no_others(tmp_path: Path) -> None:
    tensors = whole()
    first = {name: tensors[name] for name in list(tensors)[:5]}
    save_file(first, tmp_path / "model-00001-of-00002.safetensors")
    rest = {name: tensors[name] for name in list(tensors)[5:]}
    save_file(rest, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"adapter": np.zeros(4)}, tmp_path / "adapter.safetensors")
    names = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    names |= dict.fromkeys(rest, "model-00002-of-00002.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert parts(read_architecture(CONFIG, tensors=read_directory(tmp_path))) == parts(read_architecture(CONFIG))


def test_mistrals_own_copy_of_the_weights_is_ignored(tmp_path: Path) -> None:
    save_file(whole(), tmp_path / "model.safetensors")
    save_file(whole(), tmp_path / "consolidated.safetensors")
    assert len(read_directory(tmp_path)) == len(whole())


def test_an_extra_norm_that_the_formula_does_not_have_is_counted(tmp_path: Path) -> None:
    tensors = whole() | {"model.layers.1.extra_norm.weight": np.zeros(5 * HIDDEN, np.float16)}
    found = measured(tmp_path, tensors)
    assert found.layer_weight_bytes[1] - found.layer_weight_bytes[0] == 2 * 5 * HIDDEN


def test_a_checkpoint_that_differs_from_its_config_is_noted(tmp_path: Path) -> None:
    tensors = whole() | {"model.layers.1.adapter.weight": np.zeros((64, HIDDEN), np.float16)}
    assert any("of what config.json lets expect" in note for note in measured(tmp_path, tensors).notes)


def test_a_tied_head_in_the_file_is_no_second_table_in_the_engine(tmp_path: Path) -> None:
    found = measured(tmp_path, whole(), tie_word_embeddings=True)
    assert found.lm_head_bytes == 0
    assert found.parameters == read_architecture({**CONFIG, "tie_word_embeddings": True}).parameters


def test_tables_that_no_engine_loads_and_layers_behind_the_last_are_left_out(tmp_path: Path) -> None:
    tensors = whole() | layer(LAYERS)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    found = measured(tmp_path, tensors)
    assert parts(found) == parts(read_architecture(CONFIG))
    assert any("beside the model are not counted" in note for note in found.notes)


def test_routed_experts_are_distinguished_from_the_shared_one(tmp_path: Path) -> None:
    tensors = whole()
    for expert in range(2):
        tensors[f"model.layers.1.mlp.experts.{expert}.up_proj.weight"] = np.zeros((FFN, HIDDEN), np.float16)
    tensors["model.layers.1.mlp.shared_experts.up_proj.weight"] = np.zeros((FFN, HIDDEN), np.float16)
    assert measured(tmp_path, tensors).layer_expert_bytes == (0, 2 * 2 * FFN * HIDDEN, 0)


def test_quantised_tensors_keep_their_width_and_their_float32_scales() -> None:
    tensors = {name: Tensor("F16", array.shape) for name, array in whole().items()}
    tensors["model.layers.0.mlp.up_proj.weight"] = Tensor("F8_E4M3", (FFN, HIDDEN))
    tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = Tensor("F32", (1, 1))
    config = {**CONFIG, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    found = read_architecture(config, tensors=tensors)
    assert found.layer_weight_bytes[1] - found.layer_weight_bytes[0] == FFN * HIDDEN - 4


def test_a_quantisation_of_unknown_layout_is_sized_by_the_headers() -> None:
    tensors = {name: Tensor("F16", array.shape) for name, array in whole().items()}
    config = {**CONFIG, "quantization_config": {"quant_method": "spqr"}}
    with pytest.raises(BadInput, match=r"'spqr' has no known size here.*headers"):
        read_architecture(config)
    assert read_architecture(config, tensors=tensors).quantization == "spqr"


def test_what_the_engine_quantises_while_loading_is_reckoned_and_said() -> None:
    tensors = {name: Tensor("F16", array.shape) for name, array in whole().items()}
    found = read_architecture(CONFIG, quantization="fp8", tensors=tensors)
    assert not found.measured
    assert found.layer_weight_bytes == read_architecture(CONFIG, quantization="fp8").layer_weight_bytes
    assert any("reckoned" in note for note in found.notes)


def test_layers_beside_the_text_model_are_those_of_a_tower() -> None:
    plain = {name: Tensor("F16", array.shape) for name, array in whole().items()}
    tensors = {f"llm.{name}": tensor for name, tensor in plain.items()}
    tensors["vpm.encoder.layers.0.mlp.fc1.weight"] = Tensor("F16", (8, 8))
    found = read_architecture(CONFIG, tensors=tensors)
    assert found.tower_bytes == 2 * 64
    assert found.layer_weight_bytes == read_architecture(CONFIG, tensors=plain).layer_weight_bytes


def test_a_tower_is_found_by_its_name() -> None:
    tensors = {f"language_model.{name}": Tensor("F16", array.shape) for name, array in whole().items()}
    tensors["vision_tower.encoder.layers.0.mlp.fc1.weight"] = Tensor("F16", (8, 8))
    tensors["multi_modal_projector.linear_1.weight"] = Tensor("F16", (HIDDEN, 8))
    inner = {**CONFIG, "model_type": "llama"}
    wrapper = {"architectures": ["NewForConditionalGeneration"], "text_config": inner, "vision_config": {"depth": 1}}
    found = read_architecture({**wrapper, "torch_dtype": "float16"}, tensors=tensors)
    assert found.tower_bytes == 2 * (64 + HIDDEN * 8)
    assert not any("not counted" in note for note in found.notes)
    assert found.layer_weight_bytes == read_architecture(CONFIG).layer_weight_bytes


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        ("embed.weight", "head.weight"),
        ("model.llm.embed.weight", "model.llm.unembed.weight"),
        ("model.transformer.wte.embedding", "model.transformer.ff_out.weight"),
        ("model.words", "lm_head.weight"),  # by its shape
    ],
)
def test_embeddings_and_heads_are_found_by_all_their_names(embedding: str, head: str) -> None:
    names = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    inner = "model.llm." if "llm." in embedding else "model."
    tensors = {
        names.get(name, name.replace("model.", inner)): Tensor("F16", array.shape) for name, array in whole().items()
    }
    found = read_architecture(CONFIG, tensors=tensors)
    assert found.measured
    assert parts(found) == parts(read_architecture(CONFIG))


def test_a_position_embedding_is_not_taken_for_one_of_tokens() -> None:
    tensors = {name: Tensor("F16", array.shape) for name, array in whole().items()}
    tensors["model.pos_embed.weight"] = Tensor("F16", (8, HIDDEN))
    assert read_architecture(CONFIG, tensors=tensors).token_embedding_bytes == 2 * VOCAB * HIDDEN


def test_a_checkpoint_without_an_embedding_is_sized_by_its_config_and_that_is_said() -> None:
    tensors = {name: Tensor("F16", array.shape) for name, array in whole().items() if "embed" not in name}
    found = read_architecture(CONFIG, tensors=tensors)
    assert not found.measured
    assert parts(found) == parts(read_architecture(CONFIG))
    assert "the checkpoint's headers show no embedding: sized by config.json" in found.notes


def test_a_checkpoint_without_one_of_its_layers_is_refused() -> None:
    tensors = {name: Tensor("F16", array.shape) for name, array in whole().items() if "layers.1." not in name}
    with pytest.raises(BadInput, match="no weights of layer 1 of 3"):
        read_architecture(CONFIG, tensors=tensors)


def framed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "claims a header of 0 bytes"),
        (b"\x80\x02ctorch", "claims a header of"),
        (framed(b"{}")[:9], "its header has 1 of 2 bytes"),
        (framed(b"{'a': 1}"), "is not JSON"),
        (framed(b"[]"), "not an object"),
        (framed(b'{"a": 1}'), "a is not an object"),
        (framed(b'{"a": {"dtype": "Q3", "shape": [1]}}'), "unknown dtype 'Q3'"),
        (framed(b'{"a": {"dtype": "F16", "shape": [-1]}}'), r"the shape \[-1\]"),
        (framed(b'{"a": {"dtype": "F16", "shape": "big"}}'), "the shape 'big'"),
        (framed(b'{"a": {"dtype": "F16", "shape": [64]}}'), "is cut short"),
        (framed(b"[" * 100_000), "is not JSON"),
    ],
    ids=lambda value: str(value)[:32],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=words) as raised:
        read_directory(tmp_path)
    assert raised.value.field == str(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "no index of safetensors"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": "../../etc/passwd"}}', "not one beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "cannot be read: No such file"),
    ],
)
def test_a_bad_index_is_named_in_one_line(tmp_path: Path, index: str, words: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadInput, match=words):
        read_directory(tmp_path)


def test_a_directory_without_weights_and_a_missing_path_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no \.safetensors file"):
        read_directory(tmp_path)
    with pytest.raises(BadInput, match="is no directory"):
        read_directory(tmp_path / "gone")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"same": np.zeros(2)}, tmp_path / name)
    with pytest.raises(BadInput, match="holds same, which another file"):
        read_directory(tmp_path)


def test_a_family_that_the_user_asserts_is_held_against_the_headers(tmp_path: Path) -> None:
    assert measured(tmp_path, whole(), uellm_family="llama").measured
    with pytest.raises(BadInput, match=r"config\.uellm_family: is starcoder2, but the checkpoint's headers hold"):
        measured(tmp_path, whole(), uellm_family="starcoder2")


def test_layers_of_multi_token_prediction_beside_the_model_are_left_out(tmp_path: Path) -> None:
    extra = {"mtp.layers.0.mlp.up_proj.weight": np.zeros((4, 4), np.float16)}
    assert parts(measured(tmp_path, whole() | extra)) == parts(measured(tmp_path, whole()))


def test_gguf_is_refused_and_the_message_says_what_to_take(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadInput, match=r"holds GGUF.*take the model's safetensors"):
        find_tensors(tmp_path)
