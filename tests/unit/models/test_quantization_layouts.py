"""Bytes of quantised matrices, by the checkpoint layout of each method."""

from __future__ import annotations

import pytest

from helpers.models import SMALLEST_LLAMA
from uellm.errors import BadInput
from uellm.models import Architecture, read_architecture, with_quantization_file
from uellm.models.exempt import LONGEST_PATH, Exempt, checked

HIDDEN, FFN = 256, 512
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1024,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "torch_dtype": "bfloat16",
}
SQUARES, WIDES = 4 * HIDDEN * HIDDEN, 3 * HIDDEN * FFN  # q, k, v, o; gate, up, down
NORMS = 2 * 2 * HIDDEN
MATRICES = 7


def layer(section: dict, **more: object) -> int:
    return quantised(section, **more).layer_weight_bytes[0] - NORMS


def test_bitsandbytes_of_earlier_engines_has_a_float32_maximum_for_64_weights_or_a_row() -> None:
    def earlier(**section: bool) -> float:
        config = {**CONFIG, "quantization_config": {"quant_method": "bitsandbytes", **section}}
        return read_architecture(config, served=False).layer_weight_bytes[0] - NORMS

    assert earlier(load_in_4bit=True) == (SQUARES + WIDES) * (0.5 + 4 / 64)
    assert earlier(load_in_8bit=True) == SQUARES + WIDES + 4 * (4 * HIDDEN + 2 * FFN + HIDDEN)
    assert read_architecture(CONFIG, quantization="bitsandbytes", served=False).quantization == "bitsandbytes"


def quantised(section: dict, **more: object) -> Architecture:
    return read_architecture({**CONFIG, **more, "quantization_config": section})


def test_fp8_by_blocks_has_a_float32_scale_a_block() -> None:
    blocks = (SQUARES + WIDES) // (128 * 128)
    assert layer({"quant_method": "fp8", "weight_block_size": [128, 128]}) == SQUARES + WIDES + 4 * blocks


def test_fp8_blocks_that_do_not_divide_a_matrix_are_rounded_up() -> None:
    blocks = 4 * 3 * 3 + 3 * 3 * 6  # 256 and 512 in blocks of 100
    assert layer({"quant_method": "fp8", "weight_block_size": [100, 100]}) == SQUARES + WIDES + 4 * blocks


def test_static_fp8_has_a_scale_of_weights_and_one_of_inputs() -> None:
    assert layer({"quant_method": "fp8", "activation_scheme": "static"}) == SQUARES + WIDES + MATRICES * 8


def test_gptq_has_a_16_bit_scale_and_a_zero_point_a_group() -> None:
    plain = (SQUARES + WIDES) * (0.5 + 2.5 / 128)
    assert layer({"quant_method": "gptq", "bits": 4, "group_size": 128}) == plain


def test_one_group_a_column_is_one_scale_a_row() -> None:
    rows = 4 * HIDDEN + 2 * FFN + HIDDEN
    assert layer({"quant_method": "awq", "bits": 4, "group_size": -1}) == (SQUARES + WIDES) * 0.5 + rows * 2.5


def test_gptq_may_quantise_the_head() -> None:
    plain = quantised({"quant_method": "gptq", "bits": 4})
    head = quantised({"quant_method": "gptq", "bits": 4, "lm_head": True})
    assert plain.lm_head_bytes == 2 * 1024 * HIDDEN
    assert head.lm_head_bytes == 1024 * HIDDEN * (0.5 + 2.5 / 128)


def test_fbgemm_has_a_float32_scale_a_row() -> None:
    assert layer({"quant_method": "fbgemm_fp8"}) == SQUARES + WIDES + 4 * (4 * HIDDEN + 2 * FFN + HIDDEN)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("fp8", SQUARES + WIDES + 4 * MATRICES),
        ("fp8_per_tensor", SQUARES + WIDES + 4 * MATRICES),
        ("fp8_per_block", SQUARES + WIDES + 4 * (SQUARES + WIDES) // (128 * 128)),
        ("fp8_per_channel", SQUARES + WIDES + 4 * (5 * HIDDEN + 2 * FFN)),
        ("mxfp8", (SQUARES + WIDES) * (1 + 1 / 32)),
        ("mxfp4", (SQUARES + WIDES) * (0.5 + 1 / 32)),
        ("int8_per_channel_weight_only", 2 * (SQUARES + WIDES)),  # of experts alone
    ],
)
def test_what_the_engine_makes_while_loading_is_sized_by_its_name(method: str, expected: float) -> None:
    model = read_architecture(CONFIG, quantization=method)
    assert (model.quantization, model.layer_weight_bytes[0] - NORMS) == (method, expected)


def test_blocks_that_the_engine_makes_itself_limit_no_split() -> None:
    narrow = {**CONFIG, "intermediate_size": 192}
    assert read_architecture(narrow, quantization="fp8_per_block").split_limits == ()
    section = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert read_architecture({**narrow, "quantization_config": section}).split_limits


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, SQUARES + WIDES + 4 * MATRICES),
        (
            {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
            SQUARES + WIDES + 4 * (5 * HIDDEN + 2 * FFN),
        ),
        (
            {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True},
            (SQUARES + WIDES) * (0.5 + 2 / 128),
        ),
        (
            {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": False},
            (SQUARES + WIDES) * (0.5 + 2.5 / 64),
        ),
        (
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
            (SQUARES + WIDES) * (0.5 + 1 / 16) + 8 * MATRICES,
        ),
        (
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
            SQUARES + WIDES + 4 * (SQUARES + WIDES) // (128 * 128),
        ),
    ],
    ids=["tensor", "channel", "group", "asymmetric", "nvfp4", "block"],
)
def test_compressed_tensors_by_strategy(weights: dict, expected: float) -> None:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    assert layer({"quant_method": "compressed-tensors", "config_groups": groups}) == expected


def test_compressed_tensors_may_treat_modules_unlike() -> None:
    eight, four = {"num_bits": 8, "strategy": "tensor"}, {"num_bits": 4, "strategy": "group", "group_size": 128}
    groups = {
        "group_0": {"targets": ["Linear"], "weights": eight},
        "group_1": {"targets": ["re:.*mlp.*"], "weights": four},
        "group_2": {"targets": ["Linear"], "weights": None},
    }
    found = layer({"quant_method": "compressed-tensors", "config_groups": groups})
    assert found == SQUARES + 4 * 4 + WIDES * (0.5 + 2 / 128)


@pytest.mark.parametrize(
    ("section", "left_out"),
    [
        ({"modules_to_not_convert": ["self_attn"]}, SQUARES),
        ({"modules_to_not_convert": ["model.layers.0.self_attn.q_proj"]}, HIDDEN * HIDDEN),
        ({"ignored_layers": ["language_model.model.layers.0.mlp"]}, WIDES),
        ({"ignore": ["re:.*o_proj$", "lm_head"]}, HIDDEN * HIDDEN),
        ({"ignore": ["re:language_model.*down_proj"]}, HIDDEN * FFN),
        ({"modules_to_not_convert": ["model.layers.*.self_attn"]}, SQUARES),
        ({"modules_to_not_convert": ["gate", "layers.1"]}, 0),
        ({"modules_to_not_convert": None}, 0),
    ],
    ids=lambda value: str(value)[:40],
)
def test_modules_that_a_checkpoint_leaves_out_keep_16_bits(section: dict, left_out: int) -> None:
    whole = {"quant_method": "fp8", "weight_block_size": [HIDDEN, HIDDEN]}
    blocks = (SQUARES + WIDES - left_out) // (HIDDEN * HIDDEN)
    assert layer({**whole, **section}) == SQUARES + WIDES + left_out + 4 * blocks


def test_exemptions_may_make_layers_unlike() -> None:
    model = quantised({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.1"]})
    assert model.layer_weight_bytes[1] == 2 * (SQUARES + WIDES) + NORMS
    assert model.layer_weight_bytes[0] < model.layer_weight_bytes[1]


def test_gptqmodel_leaves_modules_out_by_minus_patterns_and_changes_bits_by_plus_patterns() -> None:
    plain = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    kept = layer({**plain, "dynamic": {"-:.*down_proj": {}, "+:.*up_proj": {"bits": 8}}})
    left_out = HIDDEN * FFN * (2 - 0.5 - 2.5 / 128)
    widened = HIDDEN * FFN * (0.5 + 0.5 / 128)
    assert kept - layer(plain) == left_out + widened


def test_mxfp4_shrinks_the_experts_alone() -> None:
    fields = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128, "head_dim": 64}
    config = {**CONFIG, **fields, "architectures": ["GptOssForCausalLM"]}
    model = read_architecture({**config, "quantization_config": {"quant_method": "mxfp4"}})
    plain = read_architecture(config)
    numbers, biases = 4 * 3 * HIDDEN * FFN, 4 * (2 * FFN + HIDDEN)
    assert plain.layer_expert_bytes[0] == 2 * (numbers + biases)
    assert model.layer_expert_bytes[0] == numbers * 17 / 32 + 2 * biases
    rest = [each.layer_weight_bytes[0] - each.layer_expert_bytes[0] for each in (model, plain)]
    assert rest[0] == rest[1]


def test_nvfp4_of_model_optimizer() -> None:
    found = layer({"quant_method": "modelopt", "quant_algo": "NVFP4"})
    assert found == (SQUARES + WIDES) * (0.5 + 1 / 16) + 8 * MATRICES


def test_engines_own_names_of_a_method_are_the_methods() -> None:
    section = {"quant_method": "gptq", "bits": 4}
    config = {**CONFIG, "quantization_config": section}
    assert read_architecture(config, quantization="gptq_marlin").quantization == "gptq"


def test_routers_are_never_quantised() -> None:
    config = {**CONFIG, "architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}
    fp8 = read_architecture({**config, "quantization_config": {"quant_method": "fp8"}})
    matrices = SQUARES + 4 * WIDES
    assert fp8.layer_weight_bytes[0] == matrices + 4 * (4 + 3 * 4) + 2 * 4 * HIDDEN + NORMS


@pytest.mark.parametrize(
    ("section", "field", "words"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size", "two positive whole numbers"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size", "two positive whole numbers"),
        ({"quant_method": "modelopt", "quant_algo": "INT3"}, "quant_algo", "'INT3'"),
        ({"quant_method": "fp8", "ignored_layers": "lm_head"}, "ignored_layers", "list of module names"),
        ({"quant_method": "compressed-tensors"}, "config_groups", "is missing or empty"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": 1}}, "config_groups.a", "object"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": 4}}},
            "config_groups.a.weights",
            "object",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 5}}}},
            "config_groups.a.weights.num_bits",
            "5",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 4, "strategy": "odd"}}},
            },
            "config_groups.a.weights.strategy",
            "'odd'",
        ),
        ({"quant_method": "spqr"}, "quant_method", "'spqr' has no known size here"),
        ({"quant_method": "gguf"}, "quant_method", "take the model's safetensors"),
    ],
)
def test_an_error_in_a_quantization_config_names_the_field(section: dict, field: str, words: str) -> None:
    with pytest.raises(BadInput) as raised:
        quantised(section)
    assert raised.value.field == f"config.quantization_config.{field}"
    assert words in str(raised.value)


def test_a_pattern_that_is_not_a_regular_expression_is_named() -> None:
    with pytest.raises(BadInput, match=r"'\(' is not a regular expression"):
        quantised({"quant_method": "fp8", "ignore": ["re:("]})


@pytest.mark.parametrize(("layers", "experts", "total"), [(24, 32, 13_761_264_768), (36, 128, 65_248_815_744)])
def test_gpt_oss_has_exactly_the_bytes_of_its_checkpoints_index(layers: int, experts: int, total: int) -> None:
    """20B and 120B. The totals are metadata.total_size in model.safetensors.index.json."""
    left_out = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    model = read_architecture(
        {
            "architectures": ["GptOssForCausalLM"],
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": layers,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": experts,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "torch_dtype": "bfloat16",
            "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": left_out},
        }
    )
    assert model.weight_bytes == total


def test_modelopts_own_file_is_merged_where_the_config_says_nothing() -> None:
    written = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    model = read_architecture(with_quantization_file(CONFIG, written))
    assert (model.quantization, model.kv_dtype_bytes) == ("modelopt", 1)
    own = {**CONFIG, "quantization_config": {"quant_method": "awq", "bits": 4}}
    assert with_quantization_file(own, written) is own
    with pytest.raises(BadInput, match=r"hf_quant_config\.json: must be an object"):
        with_quantization_file(CONFIG, [])


def test_mixed_precision_gives_each_module_its_own_layout_and_the_rest_16_bits() -> None:
    layers = {f"model.layers.{index}.mlp.down_proj": {"quant_algo": "NVFP4", "group_size": 16} for index in (0, 1)}
    layers |= {f"model.layers.{index}.mlp.up_proj": {"quant_algo": "FP8"} for index in (0, 1)}
    section = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    saved = HIDDEN * FFN * (2 - 0.5 - 1 / 16) + HIDDEN * FFN - 4 * 4
    assert layer(section) == 2 * (SQUARES + WIDES) - saved


def test_auto_round_may_leave_a_module_in_16_bits_by_its_name_or_an_expression() -> None:
    plain = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}
    each = HIDDEN * FFN * (2 - 0.5 - 2.5 / 128)
    named = {"model.layers.0.mlp.down_proj": {"bits": 16}}
    assert layer({**plain, "extra_config": named}) - layer(plain) == each
    assert layer({**plain, "extra_config": {r".*mlp\.(up|gate)_proj": {"bits": 16}}}) - layer(plain) == 2 * each


def test_quark_has_a_rule_for_all_and_rules_by_module() -> None:
    fp8 = {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}
    section = {"quant_method": "quark", "global_quant_config": fp8, "exclude": ["lm_head"], "layer_quant_config": {}}
    assert layer(section) == SQUARES + WIDES + MATRICES * 8
    kept = {**section, "layer_quant_config": {"*down_proj": {"weight": None}}}
    assert layer(kept) - layer(section) == HIDDEN * FFN - 8


def test_torchao_is_sized_by_the_name_of_its_configuration() -> None:
    int4 = {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 128}}
    section = {"quant_method": "torchao", "quant_type": {"default": int4}}
    assert layer(section) == (SQUARES + WIDES) * (0.5 + 4 / 128)
    unnamed = quantised({"quant_method": "torchao", "quant_type": {"default": {}}})
    assert any("counted in 16 bits" in note for note in unnamed.notes)


@pytest.mark.parametrize(
    ("section", "width"),
    [
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, 1),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"type": "float", "num_bits": 8}}, 1),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 2),
        # The engine takes Quark's word only with --kv-cache-dtype fp8.
        ({"quant_method": "quark", "kv_cache_scheme": "FP8", "global_quant_config": None}, 2),
    ],
)
def test_the_kv_cache_is_fp8_where_the_engine_takes_the_checkpoints_word(section: dict, width: int) -> None:
    assert quantised(section).kv_dtype_bytes == width


SLOW = [
    *("(a+)+$", "(a|a)*b", "(a|b){40}", ".*.*.*.*.*x", "a" * 2000, ".?" * 30 + "!", "(.|.)" * 40 + "!"),
    *("(?:.|.)" * 40 + "!", "(?=.|.)" * 10 + "!", "(?:.?)?" * 20 + "!", "(a+)(?#)+$", "(?x)(a+) +$", "(?ix:(a+) +)$"),
    *(
        ".{0,9}" * 9 + "!",
        ".*?" * 5 + "!",
        r"[\]a]*" * 5 + "!",
        r"\w+\.?" * 4 + "!",
        "a*" * 9 + "!",
        "(.*(.*(.*(.*(.*!)))))",
    ),
    *("|".join(["(.|.)"] * 40), ".*.*.*.*(.|.)!", "x{" + ".*" * 5 + "}!", ".*" * 500),
]
# Of published checkpoints, and of the tools that make them.
USUAL = [
    *(".*o_proj$", ".*mlp.gate$", "language_model.*down_proj", ".*mlp.*", ".*self_attn.*", "vision_tower.*"),
    *(
        r".*mlp\.(gate|up|gate_up|down)_proj.*",
        r".*mlp\..*_proj",
        ".*lm_head",
        "^model\\.mtp\\..*",
        "(?!.*experts).*Linear",
    ),
    *(".*(vision|audio|multi_modal_projector|embed_vision|embed_audio).*", r".*(?:^|\.)visual(?:\..*)?$"),
    *(r"(?:model\.)?mtp(?:\..*)?", r"^(?!mtp\.layers\.0\.mlp\.experts(?:\.|$)).*", r"(?:.*\.)?(?:q_proj|k_proj)$"),
    r".*(?:mlp|ffn)\.experts\.\d+\.(?:gate_proj|up_proj|down_proj|w[123])$",
    r".*\.layers\.(?:" + "|".join(map(str, range(61))) + r")\.mlp\.(?:gate|up|down)_proj$",
    r"^mtp\.layers\.0\.mlp\.experts\.[0-9]+\.(gate_proj|up_proj|down_proj)$",
    r".*(attn|attention)\.q_proj\.weight$",
    *(".*model.*layers.*mlp.*", ".*model.*layers.*self_attn.*o_proj$"),
]


@pytest.mark.parametrize("pattern", USUAL)
def test_the_expressions_of_published_checkpoints_are_taken(pattern: str) -> None:
    assert checked(pattern) == pattern


@pytest.mark.parametrize("pattern", [".*.*.*.*!", ".?" * 9 + "!", "(.|.)" * 9 + "!", ".*.*(.|.)(.|.)(.|.)!"])
def test_an_expression_that_just_passes_has_an_end_on_a_long_name(pattern: str) -> None:
    assert "a" * LONGEST_PATH not in Exempt(patterns=(checked(pattern),))


@pytest.mark.parametrize("pattern", ["a{99999999999}", "(" * 499 + ")" * 499])
def test_an_expression_that_is_too_much_for_the_engines_language_is_named(pattern: str) -> None:
    with pytest.raises(BadInput, match="is not a regular expression"):
        checked(pattern)


@pytest.mark.parametrize("pattern", SLOW, ids=lambda value: value[:40])
def test_an_expression_whose_matching_could_take_for_ever_is_refused(pattern: str) -> None:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
    group = {"targets": ["Linear"], "weights": weights}
    section = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    with pytest.raises(BadInput, match="matching could take hours"):
        read_architecture({**SMALLEST_LLAMA, "quantization_config": {**section, "ignore": [f"re:{pattern}"]}})
