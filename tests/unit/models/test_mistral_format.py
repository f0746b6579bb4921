"""Mistral's own format, a params.json, as the engine reads it."""

from __future__ import annotations

import pytest

from helpers.mistral import EXPERTS, LATENT, NEMO, PIXTRAL, PIXTRAL_MERGING, VOXTRAL
from uellm.errors import BadInput
from uellm.models import Tensor, config_of_params, read_architecture, tasks_of

# Mistral-Nemo-Base-2407 and the encoders that Pixtral and Voxtral put beside a text model.
NEMO_PARAMETERS = 12_247_782_400


def read(params, **more):
    return read_architecture(config_of_params(params), **more)


def test_a_text_model_has_its_published_size():
    model = read(NEMO)
    assert (model.name, model.parameters, model.notes) == ("MistralForCausalLM", NEMO_PARAMETERS, ())
    assert (model.max_position_embeddings, model.dtype) == (128_000, "bfloat16")
    assert model.kv_bytes_per_token == 2 * 2 * 8 * 128 * 40


def test_the_encoder_of_images_is_counted_with_the_projector_that_its_file_names():
    plain, merging = read(PIXTRAL), read(PIXTRAL_MERGING)
    assert (plain.name, plain.notes) == ("PixtralForConditionalGeneration", ())
    block = 4 * 1024**2 + 3 * 1024 * 4096 + 2 * 1024
    encoder = 3 * 16**2 * 1024 + 1024 + 24 * block
    bridge = 5120 * 1024 + 5120**2 + 2 * 5120
    assert plain.tower_bytes == 2 * (encoder + bridge)
    # Merging has a norm and a matrix of four patches into one; this projector has no biases.
    assert merging.tower_bytes == 2 * (encoder + bridge - 2 * 5120 + 1024 + 4 * 1024**2)


def test_sound_is_transcribed():
    config = config_of_params(VOXTRAL)
    assert tasks_of(config).inferred == "Transcribe"
    model = read_architecture(config)
    # Whisper's encoder, and vLLM's adapter of four frames: two matrices without biases.
    convolutions = 3 * 128 * 1280 + 1280 + 3 * 1280**2 + 1280
    block = 4 * 1280**2 + 2 * 1280 * 5120 + 4 * 1280 + 5120 + 4 * 1280
    encoder = convolutions + 1500 * 1280 + 32 * block + 2 * 1280
    assert (model.tower_bytes, model.notes) == (2 * (encoder + 2 * 5120**2), ())


def test_experts_and_latent_attention_have_the_engines_classes():
    assert read(EXPERTS).name == "MixtralForCausalLM"
    large = read(LATENT)
    assert (large.name, large.experts, large.experts_per_token) == ("MistralLarge3ForCausalLM", 8, 2)
    assert set(large.layer_kv_bytes_per_token) == {2 * (32 + 16)}
    assert [each > 0 for each in large.layer_expert_bytes] == [False, True, True, True]


def test_a_pattern_of_windows_is_repeated():
    model = read({**NEMO, "sliding_window": [None, 1024, 1024, 1024]})
    assert model.layer_window_tokens[:5] == (None, 1024, 1024, 1024, None)


@pytest.mark.parametrize(
    ("lengths", "found"),
    [
        ({"max_seq_len": 32_768}, 32_768),
        ({"max_seq_len": 262_144}, 128_000),
        ({"max_seq_len": 32_768, "max_position_embeddings": 65_536}, 32_768),
        ({"max_seq_len": 65_536, "max_position_embeddings": 32_768}, 32_768),
        ({"max_position_embeddings": 262_144}, 262_144),
        ({"max_seq_len": "long", "max_position_embeddings": None}, 128_000),
    ],
)
def test_the_shorter_of_the_two_lengths_that_the_engine_keeps_is_the_context(lengths, found):
    assert read({**NEMO, **lengths}).max_position_embeddings == found


@pytest.mark.parametrize(
    ("quantization", "found"),
    [
        (
            {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"},
            {"quant_method": "fp8", "activation_scheme": "static"},
        ),
        ({"quant_method": "compressed_tensors", "format": "x"}, {"quant_method": "compressed-tensors", "format": "x"}),
    ],
)
def test_quantisation_is_that_of_the_engine(quantization, found):
    assert config_of_params({**NEMO, "quantization": quantization})["quantization_config"] == found


def test_the_names_of_its_tensors_are_known():
    small = {
        **NEMO,
        "n_layers": 1,
        "vocab_size": 64,
        "dim": 8,
        "n_heads": 2,
        "n_kv_heads": 1,
        "head_dim": 4,
        "hidden_dim": 16,
    }
    shapes = {
        "tok_embeddings.weight": (64, 8),
        "norm.weight": (8,),
        "output.weight": (64, 8),
        "layers.0.attention_norm.weight": (8,),
        "layers.0.ffn_norm.weight": (8,),
        "layers.0.attention.wq.weight": (8, 8),
        "layers.0.attention.wk.weight": (4, 8),
        "layers.0.attention.wv.weight": (4, 8),
        "layers.0.attention.wo.weight": (8, 8),
        **{f"layers.0.feed_forward.{name}.weight": (16, 8) for name in ("w1", "w3")},
        "layers.0.feed_forward.w2.weight": (8, 16),
        "mm_streams_embeddings.embedding_module.whisper_encoder.transformer.layers.0.ffn.weight": (5,),
    }
    formula = read(small)
    found = read(small, tensors={name: Tensor("BF16", shape) for name, shape in shapes.items()})
    assert (found.layer_weight_bytes, found.lm_head_bytes) == (formula.layer_weight_bytes, formula.lm_head_bytes)
    assert (found.token_embedding_bytes, found.tower_bytes) == (formula.token_embedding_bytes, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": None}, "params.json: names no dim and n_layers"),
        ({"moe": 7}, "params.json.moe: must be an object"),
        ({"quantization": {"qformat_weight": "int3"}}, "params.json.quantization: .* is not known to the engine"),
        ({"sliding_window": [512, 1024]}, "params.json.sliding_window: names several windows"),
        ({"sliding_window": [[1]]}, "params.json.sliding_window: must list numbers of tokens, and null"),
        ({"sliding_window": [None, 512], "n_layers": 10**10}, "params.json.n_layers: must be at most 4096, not 1000"),
        ({"vision_encoder": PIXTRAL["vision_encoder"], "multimodal": VOXTRAL["multimodal"]}, "takes one of them"),
    ],
)
def test_what_is_wrong_is_told(change, message):
    with pytest.raises(BadInput, match=message):
        config_of_params({**NEMO, **change})


def test_a_file_that_holds_a_list_is_told():
    with pytest.raises(BadInput, match=r"params\.json: must be a JSON object, not \[1\]"):
        config_of_params([1])
