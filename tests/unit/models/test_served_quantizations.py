"""Quantisations that vLLM 0.32 does not start with: refused in one line, before a pod exists."""

from __future__ import annotations

import pytest

from helpers.models import SMALLEST_LLAMA
from uellm.errors import BadInput
from uellm.models import Architecture, read_architecture

SECTION = "config.quantization_config"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}


def read(section: dict) -> Architecture:
    return read_architecture({**SMALLEST_LLAMA, "quantization_config": section})


REFUSED = [
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "quant_method",
        "is not served by the engine any more",
    ),
    ({"quant_method": "gptqmodel", "bits": 4}, "quant_method", "write gptq"),
    ({**GPTQ, "sym": False}, "sym", "take a checkpoint with sym true"),
    ({**GPTQ, "bits": 3}, "bits", "is 3, and the engine serves GPTQ in 4 and 8 bits alone"),
    ({**GPTQ, "bits": 2}, "bits", "is 2"),
    ({**GPTQ, "desc_act": True}, "desc_act", "take a checkpoint with desc_act false"),
    ({**GPTQ, "dynamic": {"+:.*up_proj": {"sym": False}}}, "sym", "sym true"),
    ({"quant_method": "awq", "w_bit": 8}, "bits", "is 8, and the engine serves AWQ in 4 bits alone"),
    ({"quant_method": "awq", "bits": 3}, "bits", "is 3"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}, "quant_algo", "'NVFP4_AWQ' is not served"),
    ({"quant_method": "modelopt", "quant_algo": "FP8_BLOCK"}, "quant_algo", "'FP8_BLOCK' is not served"),
    ({"quant_method": "modelopt"}, "quant_algo", "is missing"),
]


@pytest.mark.parametrize(("section", "field", "words"), REFUSED)
def test_a_checkpoint_that_the_engine_does_not_start_with_is_refused(section: dict, field: str, words: str) -> None:
    with pytest.raises(BadInput) as raised:
        read(section)
    assert raised.value.field == f"{SECTION}.{field}"
    assert words in str(raised.value)


def test_columns_in_one_group_are_not_ordered_so_that_the_engine_takes_them() -> None:
    assert (
        read({**GPTQ, "group_size": -1, "desc_act": True}).weight_bytes == read({**GPTQ, "group_size": -1}).weight_bytes
    )


@pytest.mark.parametrize(
    ("section", "dtype", "served"),
    [
        (GPTQ, "float32", "bfloat16 or float16"),
        ({"quant_method": "awq", "bits": 4}, "float32", "bfloat16 or float16"),
        ({"quant_method": "fp8"}, "float32", "bfloat16 or float16"),
        ({"quant_method": "quark", "global_quant_config": None}, "float32", "bfloat16 or float16"),
        ({"quant_method": "mxfp4"}, "float16", "bfloat16"),
        ({"quant_method": "mxfp8"}, "half", "bfloat16"),
        ({"quant_method": "modelopt", "quant_algo": "MXFP8"}, "float16", "bfloat16"),
    ],
)
def test_a_dtype_that_the_engine_does_not_compute_the_method_in_is_refused(
    section: dict, dtype: str, served: str
) -> None:
    config = {**SMALLEST_LLAMA, "torch_dtype": "bfloat16", "quantization_config": section}
    assert read_architecture(config).dtype == "bfloat16"
    with pytest.raises(BadInput, match=rf"^dtype: float\d\d is refused by the engine for \S+: set {served}$"):
        read_architecture(config, dtype=dtype)


def test_float32_is_no_matter_to_compressed_tensors() -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}
    section = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    config = {**SMALLEST_LLAMA, "quantization_config": section}
    assert read_architecture(config, dtype="float32").dtype == "float32"


@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "Gemma3ForCausalLM", "Glm4ForCausalLM"])
def test_a_class_that_float16_breaks_is_refused_in_it(name: str) -> None:
    with pytest.raises(BadInput, match=f"dtype: float16 is refused by the engine for {name}: set bfloat16 or float32"):
        read_architecture({**SMALLEST_LLAMA, "architectures": [name]}, dtype="half")


def test_a_class_that_float16_breaks_is_computed_in_bfloat16_whatever_its_config_says() -> None:
    config = {**SMALLEST_LLAMA, "architectures": ["Gemma2ForCausalLM"], "torch_dtype": "float16"}
    assert read_architecture(config).dtype == "bfloat16"


def test_bitsandbytes_is_not_made_while_loading_either() -> None:
    with pytest.raises(BadInput, match="quantization: bitsandbytes is not served by the engine any more: take"):
        read_architecture(SMALLEST_LLAMA, quantization="bitsandbytes")


def test_none_changes_nothing_about_a_quantised_checkpoint_since_the_engine_reads_it() -> None:
    config = {**SMALLEST_LLAMA, "quantization_config": GPTQ}
    found, auto = read_architecture(config, quantization="none"), read_architecture(config)
    assert (found.quantization, found.weight_bytes) == ("gptq", auto.weight_bytes)
    assert any(note.startswith("quantization none changes nothing") for note in found.notes)
    assert read_architecture(SMALLEST_LLAMA, quantization="none").quantization == "none"


@pytest.mark.parametrize(
    "section", [section for section, field, _ in REFUSED if field != "quant_method" or "load_in_4bit" in section]
)
def test_what_the_stock_engine_does_not_start_with_has_a_size_for_another_one(section: dict) -> None:
    config = {**SMALLEST_LLAMA, "quantization_config": section}
    found = read_architecture(config, served=False)
    assert 0 < found.weight_bytes < read_architecture(SMALLEST_LLAMA).weight_bytes
    assert read_architecture(config, dtype="float32", served=False).dtype == "float32"


def test_a_checkpoint_whose_kv_cache_alone_is_made_for_fp8_is_served_in_16_bits() -> None:
    made = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    assert read(made) == read_architecture(SMALLEST_LLAMA)


def test_a_tools_name_of_the_checkpoints_method_is_understood() -> None:
    config = {**SMALLEST_LLAMA, "quantization_config": GPTQ}
    assert read_architecture(config, quantization="gptqmodel").quantization == "gptq"
