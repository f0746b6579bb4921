"""The engine's flags for what spec.model says of length, dtype and quantisation."""

from __future__ import annotations

import pytest

from uellm.errors import PlanError
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.model_flags import ModelSettings, with_flags

OPEN = ModelSettings(None, "auto", "auto")


@pytest.mark.parametrize(
    ("args", "length"),
    [
        (("--max-model-len", "4096"), 4096),
        (("--max-model-len=4096",), 4096),
        (("--max_model_len", "32k"), 32000),
        (("--max-model-len", "32K"), 32768),
        (("--max-model-len", "1", "--max-model-len", "2"), 2),
        (("--max-model-len", "auto"), None),
        (("--max-model-len", "-1"), None),
        (("--seed", "1"), None),
    ],
)
def test_the_length_is_read_as_the_engine_reads_it(args, length):
    assert with_flags(OPEN, UserArgs(args)) == ModelSettings(length, "auto", "auto")


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (("--dtype", "float32"), ("float32", "auto")),
        (("--dtype=half",), ("float16", "auto")),
        (("--dtype", "auto"), ("auto", "auto")),
        (("--quantization", "fp8"), ("auto", "fp8")),
        (("-q", "fp8"), ("auto", "fp8")),
        (("-q=fp8",), ("auto", "fp8")),
        (("-qfp8",), ("auto", "fp8")),
        (("-q", "None"), ("auto", "auto")),
    ],
)
def test_dtype_and_quantization_are_read_in_every_spelling_of_the_engine(args, found):
    assert with_flags(OPEN, UserArgs(args)) == (None, *found)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--max-model-len", "abc"), "--max-model-len 'abc' is not a positive whole number"),
        (("--max-model-len",), "--max-model-len '' is not a positive whole number"),
        (("--max-model-len", "1.5K"), "--max-model-len '1.5K' is not a positive whole number"),
        (("--max-model-len", "1t"), "--max-model-len 1t is more than 100000000 tokens"),
        (("--dtype", "int3"), "--dtype 'int3' is not one of auto, bfloat16, float16, half, float32, float"),
        (("--quantization",), "--quantization '' names no method: use spec.model.quantization"),
        (("-q", "none"), "--quantization 'none' is no method of the engine: use spec.model.quantization"),
        (("-q", "gptqmodel"), "--quantization 'gptqmodel' is no method of the engine: use gptq"),
        (("--max-mod", "8"), "--max-mod is short for --max-model-len: write it in full"),
        (("--dty=half",), "--dty is short for --dtype: write it in full"),
    ],
)
def test_what_the_engine_does_not_take_is_refused_with_the_flag(args, message):
    with pytest.raises(PlanError) as caught:
        with_flags(OPEN, UserArgs(args))
    assert (caught.value.reason, str(caught.value)) == ("InvalidOverride", f"spec.engine.args: {message}")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--max-model-len", "4096"), "--max-model-len 4096 contradicts spec.model.maxModelLen 8192"),
        (("--max-model-len", "auto"), "--max-model-len auto contradicts spec.model.maxModelLen 8192"),
        (("--dtype", "float32"), "--dtype float32 contradicts spec.model.dtype float16"),
        (("-q", "fp8"), "--quantization fp8 contradicts spec.model.quantization awq"),
    ],
)
def test_what_contradicts_the_spec_is_refused(args, message):
    with pytest.raises(PlanError) as caught:
        with_flags(ModelSettings(8192, "float16", "awq"), UserArgs(args))
    assert str(caught.value) == f"spec.engine.args: {message}: leave one of them out"


def test_what_repeats_the_spec_is_let_through():
    spec = ModelSettings(8000, "float16", "awq")
    args = ("--max-model-len", "8k", "--dtype", "half", "-q", "awq")
    assert with_flags(spec, UserArgs(args)) == spec
    assert with_flags(spec, UserArgs(("-q", "awq_marlin"))).quantization == "awq_marlin"
