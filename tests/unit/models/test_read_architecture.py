from __future__ import annotations

import pytest

from helpers.models import LLAMA_8B
from uellm.errors import BadInput
from uellm.models import read_architecture


def test_kv_bytes_count_grouped_heads_not_attention_heads() -> None:
    # 2 (keys and values) x 8 KV heads x 128 x 2 bytes, on each of 32 layers
    assert read_architecture(LLAMA_8B).layer_kv_bytes_per_token == (4096,) * 32


def test_a_layer_of_llama_8b_has_exactly_these_bytes() -> None:
    attention = 4096 * (4096 + 2 * 1024) + 4096 * 4096
    assert read_architecture(LLAMA_8B).layer_weight_bytes[0] == 2 * (attention + 3 * 4096 * 14336 + 2 * 4096)


def test_qwen2_has_biases_on_query_key_and_value_alone() -> None:
    qwen = read_architecture({**LLAMA_8B, "architectures": ["Qwen2ForCausalLM"]})
    llama = read_architecture(LLAMA_8B)
    assert qwen.layer_weight_bytes[0] - llama.layer_weight_bytes[0] == 2 * (4096 + 2 * 1024)


def test_llama_with_attention_and_mlp_bias_has_more_weights() -> None:
    biased = read_architecture({**LLAMA_8B, "attention_bias": True, "mlp_bias": True})
    extra = (4096 + 2 * 1024 + 4096) + (2 * 14336 + 4096)
    assert biased.parameters - read_architecture(LLAMA_8B).parameters == 32 * extra


def test_a_tied_head_is_counted_once_and_copied_to_the_last_stage() -> None:
    tied = read_architecture({**LLAMA_8B, "tie_word_embeddings": True})
    assert tied.lm_head_bytes == 0
    assert tied.lm_head_bytes_on_last_stage(1) == 0
    assert tied.lm_head_bytes_on_last_stage(2) == tied.embedding_bytes == 2 * 128256 * 4096


def test_opt_embeds_positions_and_two_more() -> None:
    config = {
        "model_type": "opt",
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "torch_dtype": "float16",
    }
    model = read_architecture(config)
    assert model.embedding_bytes - model.token_embedding_bytes == 2 * 768 * 2050
    assert model.tied


def test_a_multimodal_wrapper_is_read_by_its_text_config() -> None:
    inner = {key: value for key, value in LLAMA_8B.items() if key not in ("architectures", "torch_dtype")}
    wrapper = {"architectures": ["LlavaForConditionalGeneration"], "text_config": inner, "torch_dtype": "float16"}
    model = read_architecture(wrapper)
    assert model.parameters == read_architecture(LLAMA_8B).parameters
    assert model.dtype == "float16"


def test_a_missing_field_inside_text_config_is_named_with_its_path() -> None:
    with pytest.raises(BadInput, match=r"^config\.text_config\.hidden_size: is missing"):
        read_architecture({"text_config": {"model_type": "orion"}})


def test_a_text_config_omits_its_familys_defaults_and_a_note_says_so() -> None:
    model = read_architecture({"text_config": {"model_type": "llama", "vocab_size": 32064}, "torch_dtype": "float16"})
    assert (model.hidden_size, model.layers, model.kv_heads) == (4096, 32, 32)
    assert any("leaves out hidden_size 4096" in note for note in model.notes)
    with pytest.raises(BadInput, match=r"^config\.hidden_size: is missing"):
        read_architecture({"model_type": "llama", "vocab_size": 32064})


@pytest.mark.parametrize(("asked", "width"), [("float32", 4), ("half", 2), ("bfloat16", 2), ("auto", 2)])
def test_the_dtype_sets_the_bytes(asked: str, width: int) -> None:
    model = read_architecture(LLAMA_8B, dtype=asked)
    assert model.weight_bytes == width * model.parameters
    assert model.kv_dtype_bytes == width


def test_a_float32_checkpoint_is_served_in_bfloat16_as_the_engine_does_and_that_is_said() -> None:
    model = read_architecture({**LLAMA_8B, "torch_dtype": "float32"})
    assert model.dtype == "bfloat16"
    assert any("float32" in note for note in model.notes)
    assert read_architecture({**LLAMA_8B, "torch_dtype": "float32"}, dtype="float32").weight_dtype_bytes == 4


def test_dtype_auto_without_a_dtype_in_the_config_is_16_bits_with_a_note() -> None:
    config = {key: value for key, value in LLAMA_8B.items() if key != "torch_dtype"}
    model = read_architecture(config)
    assert model.weight_dtype_bytes == 2
    assert any("names no dtype" in note for note in model.notes)


def test_fp8_halves_linear_layers_and_leaves_embedding_head_and_norms() -> None:
    fp8, plain = read_architecture(LLAMA_8B, quantization="fp8"), read_architecture(LLAMA_8B)
    norms, scales = 2 * 2 * 4096, 7 * 4
    assert fp8.layer_weight_bytes[0] == (plain.layer_weight_bytes[0] - norms) // 2 + norms + scales
    assert (fp8.embedding_bytes, fp8.lm_head_bytes) == (plain.embedding_bytes, plain.lm_head_bytes)


def test_awq_counts_scales_and_zero_points_by_group() -> None:
    section = {"quant_method": "awq", "bits": 4, "group_size": 128}
    awq = read_architecture({**LLAMA_8B, "torch_dtype": "float16", "quantization_config": section})
    linear = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
    assert awq.quantization == "awq"
    assert awq.layer_weight_bytes[0] == linear * (0.5 + 2.5 / 128) + 2 * 2 * 4096


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        (None, 131072),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 131072),
        ({"rope_type": "linear", "factor": 2.0}, 262144),
        ({"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32768}, 131072),
        (
            {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": {"rope_type": "default"}},
            262144,
        ),
        ({"type": "dynamic", "factor": "many"}, 131072),
    ],
)
def test_the_longest_context_is_scaled_as_in_the_engine(scaling: dict | None, longest: int) -> None:
    assert read_architecture({**LLAMA_8B, "rope_scaling": scaling}).max_position_embeddings == longest


@pytest.mark.parametrize(
    ("lengths", "longest"),
    [({"max_seq_length": 4096}, 4096), ({"model_max_length": 200_000}, 200_000), ({"seq_length": 1 << 20}, 131072)],
)
def test_the_shortest_length_counts_unless_the_config_has_the_models_own(lengths: dict, longest: int) -> None:
    assert read_architecture({**LLAMA_8B, **lengths}).max_position_embeddings == longest


def test_all_layers_of_mistral_slide_where_a_window_is_given() -> None:
    model = read_architecture({**LLAMA_8B, "architectures": ["MistralForCausalLM"], "sliding_window": 4096})
    assert model.layer_window_tokens == (4096,) * 32
    assert model.layer_kv_bytes_per_token == (4096,) * 32


@pytest.mark.parametrize("given", [{}, {"sliding_window": None}, {"sliding_window": 0}])
def test_no_window_is_the_whole_context(given: dict) -> None:
    model = read_architecture({**LLAMA_8B, "architectures": ["MistralForCausalLM"], **given})
    assert model.layer_window_tokens == (None,) * 32


def test_qwen_slides_only_where_it_is_switched_on_and_from_a_layer_on() -> None:
    config = {**LLAMA_8B, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 4096, "max_window_layers": 30}
    assert read_architecture(config).layer_window_tokens == (None,) * 32
    sliding = read_architecture({**config, "use_sliding_window": True})
    assert sliding.layer_window_tokens == (None,) * 30 + (4096,) * 2


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"uellm_family": "perceptron"}, "config.uellm_family", "'perceptron' is no family known here"),
        ({"text_config": [1]}, "config.text_config", "must be an object"),
        ({"head_dim": -1}, "config.head_dim", "positive"),
        ({"max_position_embeddings": "long"}, "config.max_position_embeddings", "'long'"),
        ({"architectures": None, "model_type": None}, "config.architectures", "is missing"),
        ({"hidden_size": None}, "config.hidden_size", "is missing"),
        ({"hidden_size": "4096"}, "config.hidden_size", "'4096'"),
        ({"hidden_size": True}, "config.hidden_size", "True"),
        ({"hidden_size": 4096.5}, "config.hidden_size", "4096.5"),
        ({"num_hidden_layers": 0}, "config.num_hidden_layers", "positive"),
        ({"num_hidden_layers": -2}, "config.num_hidden_layers", "positive"),
        ({"num_hidden_layers": 10**9}, "config.num_hidden_layers", "at most"),
        ({"num_key_value_heads": 5}, "config.num_key_value_heads", "does not divide"),
        ({"num_attention_heads": 24}, "config.num_attention_heads", "does not divide hidden_size"),
        ({"tie_word_embeddings": "yes"}, "config.tie_word_embeddings", "true or false"),
        ({"torch_dtype": "int8"}, "config.torch_dtype", "'int8'"),
        ({"quantization_config": {"quant_method": "spqr"}}, "config.quantization_config.quant_method", "'spqr'"),
        ({"quantization_config": {"quant_method": "awq", "bits": 5}}, "config.quantization_config.bits", "5"),
        (
            {"quantization_config": {"quant_method": "gptq", "group_size": 0}},
            "config.quantization_config.group_size",
            "0",
        ),
        ({"quantization_config": "awq"}, "config.quantization_config", "object"),
        ({"quantization_config": {"bits": 4}}, "config.quantization_config.quant_method", "is missing"),
    ],
)
def test_an_error_in_a_config_names_the_field(change: dict, field: str, words: str) -> None:
    with pytest.raises(BadInput) as raised:
        read_architecture({**LLAMA_8B, "num_key_value_heads": 8, **change})
    assert raised.value.field == field
    assert words in str(raised.value)


def test_an_unknown_architecture_is_refused_with_a_remedy() -> None:
    fields = {"architectures": ["SomethingElse"], "model_type": "something", "width": 4096}
    with pytest.raises(BadInput, match=r"'SomethingElse'.* one of llama, .*uellm_family.*spec\.model\.config"):
        read_architecture(fields)


def test_an_unknown_architecture_with_the_usual_fields_is_reckoned_as_llama_and_said() -> None:
    model = read_architecture({**LLAMA_8B, "architectures": ["SomethingElse"], "model_type": "something"})
    assert model.parameters == read_architecture(LLAMA_8B).parameters
    assert any("not known here: reckoned as a decoder like Llama" in note for note in model.notes)
    assert any("not in the registry of vLLM" in note for note in model.notes)


def test_a_user_may_name_the_family_of_an_unknown_class() -> None:
    told = read_architecture({**LLAMA_8B, "architectures": ["SomethingElse"], "uellm_family": "qwen2"})
    qwen = read_architecture({**LLAMA_8B, "architectures": ["Qwen2ForCausalLM"]})
    assert told.layer_weight_bytes == qwen.layer_weight_bytes
    assert told.name == "SomethingElse"


def test_the_family_that_a_user_names_applies_to_a_text_config_too() -> None:
    inner = {key: value for key, value in LLAMA_8B.items() if key not in ("architectures", "model_type")}
    wrapper = {"architectures": ["NewVLM"], "uellm_family": "LlamaForCausalLM", "text_config": inner}
    assert read_architecture(wrapper).parameters == read_architecture(LLAMA_8B).parameters


@pytest.mark.parametrize(("name", "rows"), [("LlamaForSequenceClassification", 3), ("LlamaModel", 0)])
def test_a_classifier_and_an_embedder_have_no_head_for_text(name: str, rows: int) -> None:
    model = read_architecture({**LLAMA_8B, "architectures": [name], "num_labels": 3})
    assert model.lm_head_bytes == 2 * rows * 4096
    assert model.lm_head_bytes_on_last_stage(2) == model.lm_head_bytes
    assert model.layer_weight_bytes == read_architecture(LLAMA_8B).layer_weight_bytes


@pytest.mark.parametrize(("given", "field"), [({"dtype": "int4"}, "dtype"), ({"quantization": "exl2"}, "quantization")])
def test_a_wrong_argument_is_named(given: dict, field: str) -> None:
    with pytest.raises(BadInput) as raised:
        read_architecture(LLAMA_8B, **given)
    assert raised.value.field == field


def test_awq_needs_an_awq_checkpoint() -> None:
    with pytest.raises(BadInput, match="quantization: awq needs a checkpoint made with it"):
        read_architecture(LLAMA_8B, quantization="awq")


def test_another_quantisation_than_the_checkpoints_is_refused() -> None:
    config = {**LLAMA_8B, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(BadInput, match="quantization: is awq, but the checkpoint is made with gptq"):
        read_architecture(config, quantization="awq")


def test_a_config_that_is_not_an_object_is_refused() -> None:
    with pytest.raises(BadInput, match="config: must be an object"):
        read_architecture(["LlamaForCausalLM"])  # type: ignore[arg-type]


def test_whole_numbers_written_as_floats_are_read() -> None:
    assert read_architecture({**LLAMA_8B, "hidden_size": 4096.0}).hidden_size == 4096


def test_a_field_under_another_name_wins_over_the_default_of_its_first_name() -> None:
    config = {**LLAMA_8B, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
    config |= {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
    assert read_architecture(config).experts == 4
