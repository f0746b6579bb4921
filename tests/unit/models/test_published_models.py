"""Parameter counts of published models, from the numbers of their config.json. Counts: the `safetensors.total` that
Hugging Face shows for each, or, for OPT, the length of `model.parameters()` in transformers."""

from __future__ import annotations

import pytest

from uellm.models import read_architecture

LLAMA, QWEN2, MISTRAL, OPT = "LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM", "OPTForCausalLM"

# name, architecture, vocabulary, hidden, intermediate, layers, heads, KV heads, tied, further fields, parameters
MODELS = [
    ("Llama-2-7b", LLAMA, 32000, 4096, 11008, 32, 32, 32, False, {}, 6_738_415_616),
    ("Llama-2-13b", LLAMA, 32000, 5120, 13824, 40, 40, 40, False, {}, 13_015_864_320),
    ("Llama-2-70b", LLAMA, 32000, 8192, 28672, 80, 64, 8, False, {}, 68_976_648_192),
    ("Llama-3.1-8B", LLAMA, 128256, 4096, 14336, 32, 32, 8, False, {}, 8_030_261_248),
    ("Llama-3.1-70B", LLAMA, 128256, 8192, 28672, 80, 64, 8, False, {}, 70_553_706_496),
    ("Llama-3.2-1B", LLAMA, 128256, 2048, 8192, 16, 32, 8, True, {"head_dim": 64}, 1_235_814_400),
    ("Llama-3.2-3B", LLAMA, 128256, 3072, 8192, 28, 24, 8, True, {"head_dim": 128}, 3_212_749_824),
    ("TinyLlama-1.1B", LLAMA, 32000, 2048, 5632, 22, 32, 4, False, {}, 1_100_048_384),
    ("Mistral-7B-v0.1", MISTRAL, 32000, 4096, 14336, 32, 32, 8, False, {"sliding_window": 4096}, 7_241_732_096),
    ("Mistral-7B-v0.3", MISTRAL, 32768, 4096, 14336, 32, 32, 8, False, {}, 7_248_023_552),
    ("Mistral-Nemo-12B", MISTRAL, 131072, 5120, 14336, 40, 32, 8, False, {"head_dim": 128}, 12_247_782_400),
    ("Qwen2-0.5B", QWEN2, 151936, 896, 4864, 24, 14, 2, True, {}, 494_032_768),
    ("Qwen2-1.5B", QWEN2, 151936, 1536, 8960, 28, 12, 2, True, {}, 1_543_714_304),
    ("Qwen2-7B", QWEN2, 152064, 3584, 18944, 28, 28, 4, False, {}, 7_615_616_512),
    ("Qwen2.5-3B", QWEN2, 151936, 2048, 11008, 36, 16, 2, True, {}, 3_085_938_688),
    ("Qwen2.5-14B", QWEN2, 152064, 5120, 13824, 48, 40, 8, False, {}, 14_770_033_664),
    ("Qwen2.5-32B", QWEN2, 152064, 5120, 27648, 64, 40, 8, False, {}, 32_763_876_352),
    ("Qwen2.5-72B", QWEN2, 152064, 8192, 29568, 80, 64, 8, False, {}, 72_706_203_648),
    ("opt-125m", OPT, 50272, 768, 3072, 12, 12, 12, True, {}, 125_239_296),
    (
        *("opt-350m", OPT, 50272, 1024, 4096, 24, 16, 16, True),
        *({"word_embed_proj_dim": 512, "do_layer_norm_before": False}, 331_196_416),
    ),
    ("opt-1.3b", OPT, 50272, 2048, 8192, 24, 32, 32, True, {}, 1_315_758_080),
    ("opt-6.7b", OPT, 50272, 4096, 16384, 32, 32, 32, True, {}, 6_658_473_984),
]


def config_of(entry: tuple) -> dict:
    _, architecture, vocab, hidden, intermediate, layers, heads, kv_heads, tied, more, _ = entry
    width = "ffn_dim" if architecture == OPT else "intermediate_size"
    return {
        "architectures": [architecture],
        "vocab_size": vocab,
        "hidden_size": hidden,
        width: intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **({} if architecture == OPT else {"num_key_value_heads": kv_heads}),
        "tie_word_embeddings": tied,
        "max_position_embeddings": 2048,
        "torch_dtype": "float16",
        **more,
    }


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry[0])
def test_the_parameters_are_those_published(entry: tuple) -> None:
    assert read_architecture(config_of(entry)).parameters == entry[-1]


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry[0])
def test_the_bytes_of_the_parts_are_the_parameters_in_16_bits(entry: tuple) -> None:
    model = read_architecture(config_of(entry))
    assert model.weight_bytes == 2 * model.parameters
    assert len(model.layer_weight_bytes) == len(model.layer_kv_bytes_per_token) == model.layers
