"""Bytes of quantised matrices against vLLM's own allocation for the same quantization_config (meta device)."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from uellm.models.precision import read_precision
from uellm.models.weights import WeightMatrix
from uellm_devcluster.local import free_port

ROWS, COLUMNS = 1536, 1024
PATH = "model.layers.0.mlp.up_proj"
# A shape that compressed-tensors stores beside packed weights, and the bound of FBGEMM's inputs: bytes per matrix.
ODDMENTS = 16
DYNAMIC = {"num_bits": 8, "strategy": "token", "symmetric": True, "dynamic": True}


def compressed(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    weights = {"symmetric": True, "dynamic": False, **weights}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "format": form, "ignore": [], "config_groups": {"group_0": group}}


INT8, FP8 = {"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "float"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
SECTIONS = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "fp8-static": {"quant_method": "fp8", "activation_scheme": "static"},
    "fbgemm": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": []},
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8", "quantization": {"quant_algo": "FP8"}},
    "w4a16": compressed("pack-quantized", INT4),
    "w4a16-asymmetric": compressed("pack-quantized", {**INT4, "symmetric": False}),
    "w8a8-int": compressed("int-quantized", {**INT8, "strategy": "channel"}, {**DYNAMIC, "type": "int"}),
    "w8a8-fp8": compressed("float-quantized", {**FP8, "strategy": "channel"}, {**DYNAMIC, "type": "float"}),
    "w8a8-fp8-tensor": compressed("float-quantized", {**FP8, "strategy": "tensor"}, {**DYNAMIC, "type": "float"}),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[None]:
    """vLLM's distributed state for one process, which its layers need."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )

    torch = pytest.importorskip("torch")
    address = f"tcp://127.0.0.1:{free_port()}"
    config = VllmConfig()
    config.model_config = SimpleNamespace(dtype=torch.float16, quantization=None, is_moe=False)
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, address, 0, "gloo")
        initialize_model_parallel(1, 1)
        yield
        cleanup_dist_env_and_memory()


def allocated(section: dict[str, Any]) -> int:
    """Bytes of the parameters that vLLM creates for one linear layer."""
    import torch
    from vllm.model_executor.layers.linear import ReplicatedLinear
    from vllm.model_executor.layers.quantization import get_quantization_config

    layer = ReplicatedLinear.__new__(ReplicatedLinear)
    torch.nn.Module.__init__(layer)
    facts = {"input_size": COLUMNS, "output_size": ROWS, "tp_size": 1, "params_dtype": torch.float16, "prefix": PATH}
    for name, value in facts.items():
        setattr(layer, name, value)
    try:
        method = get_quantization_config(section["quant_method"]).from_config(section).get_quant_method(layer, PATH)
        with torch.device("meta"):
            method.create_weights(
                layer, COLUMNS, [ROWS], COLUMNS, ROWS, torch.float16, weight_loader=lambda *_, **__: None
            )
    except ValueError as error:
        if "Failed to find a kernel" in str(error):
            pytest.skip(f"this machine's vLLM has no kernel for it: {str(error)[:80]}")
        raise
    return sum(each.numel() * each.element_size() for each in layer.parameters())


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("name", SECTIONS)
def test_a_matrix_weighs_what_the_engine_allocates(name: str) -> None:
    section = SECTIONS[name]
    precision = read_precision({"dtype": "float16", "quantization_config": section}, "auto", "auto")
    ours = precision.size(WeightMatrix("mlp.up_proj", ROWS, COLUMNS), PATH)
    assert 0 <= allocated(section) - ours <= ODDMENTS
