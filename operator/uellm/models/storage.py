"""The memory layout of quantised matrices: bits per number, and scales and zero points by group.

A `Storage` describes the layout of one method. The function that builds it names the source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from uellm.errors import BadInput
from uellm.models.kernels import Kernel
from uellm.models.shown import shown
from uellm.models.weights import WeightMatrix

SECTION = "config.quantization_config"
BLOCK_SCALE_BYTES = 4  # float32
GROUP_SCALE_BYTES = 2  # as wide as activations
GROUP_INDEX_BYTES = 4  # g_idx: an int32 for each column
DEFAULT_GROUP_SIZE = 128  # AutoAWQ's and AutoGPTQ's own default
BITSANDBYTES_GROUP = 64  # bitsandbytes' block size; the engine keeps the absolute maximum of each in float32
MODELOPT = ("FP8", "NVFP4", "W4A16_NVFP4", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8", "MIXED_PRECISION")
"""Algorithms of NVIDIA's Model Optimizer that vLLM serves."""
MXFP4_GROUP, NVFP4_GROUP = 32, 16  # numbers that share an 8-bit scale, by the formats' definitions


@dataclass(frozen=True, slots=True)
class Storage:
    """The layout of a matrix. A group of rows x columns numbers shares a scale and a zero point."""

    bits: float
    """Per number."""
    columns: int | None = None
    """Columns of a group; None: the whole row."""
    rows: int = 1
    """Rows of a group."""
    scale_bytes: int = 0
    """Per group."""
    zero_bits: float = 0.0
    """Zero point, per group."""
    column_bytes: int = 0
    """Further data per column of the matrix."""
    matrix_bytes: int = 0
    """Further data per matrix."""
    int8_inputs: bool = False
    """Whether the engine multiplies it with inputs in INT8, as integers."""
    fp8_inputs_only: bool = False
    """Whether the engine multiplies it with inputs in FP8 alone, and does not unpack it to 16 bits for older GPUs."""

    @property
    def kernel(self) -> Kernel:
        """The format of the kernel that multiplies such matrices."""
        if self.bits >= 8:
            return "fp8-block" if self.rows > 1 else "fp8"
        if self.scale_bytes == 1:  # microscaling: one byte for 16 or 32 numbers
            return "nvfp4" if self.columns == NVFP4_GROUP else "mxfp4"
        return "int4"

    def size(self, linear: WeightMatrix) -> int:
        """Bytes of all copies of a matrix, without biases."""
        groups = math.ceil(linear.rows / self.rows) * math.ceil(linear.columns / (self.columns or linear.columns))
        one = math.ceil(linear.rows * linear.columns * self.bits / 8)
        one += math.ceil(groups * (self.scale_bytes + self.zero_bits / 8))
        return linear.copies * (one + linear.columns * self.column_bytes + self.matrix_bytes)


def fp8(section: Mapping[str, Any]) -> Storage:
    """Eight bits; scales by block where `weight_block_size` is given (DeepSeek V3), otherwise one a matrix."""
    block = section.get("weight_block_size")
    if block is None:
        static = section.get("activation_scheme") == "static"
        return Storage(8, matrix_bytes=BLOCK_SCALE_BYTES * (2 if static else 1))
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise BadInput(f"{SECTION}.weight_block_size", f"must be two positive whole numbers, not {shown(block)}")
    return Storage(8, columns=block[1], rows=block[0], scale_bytes=BLOCK_SCALE_BYTES)


def by_row(section: Mapping[str, Any]) -> Storage:
    """Eight bits and a float32 scale a row: FBGEMM's FP8 and bitsandbytes' LLM.int8()."""
    return Storage(8, scale_bytes=BLOCK_SCALE_BYTES)


def awq(section: Mapping[str, Any]) -> Storage:
    """AutoAWQ: a 16-bit scale and a zero point as wide as a weight for each group."""
    bits = read_bits(section, "w_bit", "bits")
    return Storage(bits, _group(section), scale_bytes=GROUP_SCALE_BYTES, zero_bits=bits)


def gptq(section: Mapping[str, Any]) -> Storage:
    """AutoGPTQ and GPTQModel: as AWQ, and the group of each column where `desc_act` made the order matter."""
    bits = read_bits(section, "bits")
    index = GROUP_INDEX_BYTES if section.get("desc_act") is True and section.get("group_size") != -1 else 0
    return Storage(bits, _group(section), scale_bytes=GROUP_SCALE_BYTES, zero_bits=bits, column_bytes=index)


def bitsandbytes(section: Mapping[str, Any]) -> Storage:
    """bitsandbytes: four bits by blocks, or eight bits by rows; `load_in_4bit` is what the engine takes by itself."""
    if section.get("load_in_8bit"):
        return by_row(section)
    return Storage(4, BITSANDBYTES_GROUP, scale_bytes=BLOCK_SCALE_BYTES)


def mxfp4(section: Mapping[str, Any]) -> Storage:
    """OCP microscaling FP4: 4 bits, and an 8-bit exponent for 32 numbers."""
    return Storage(4, MXFP4_GROUP, scale_bytes=1)


def mxfp8(section: Mapping[str, Any]) -> Storage:
    """OCP microscaling FP8: 8 bits, and an 8-bit exponent for 32 numbers."""
    return Storage(8, MXFP4_GROUP, scale_bytes=1)


def nvfp4(section: Mapping[str, Any]) -> Storage:
    """NVIDIA's FP4: 4 bits, an 8-bit scale for 16 numbers, and two scales a matrix besides."""
    return Storage(4, NVFP4_GROUP, scale_bytes=1, matrix_bytes=2 * BLOCK_SCALE_BYTES)


def modelopt(section: Mapping[str, Any]) -> Storage:
    """NVIDIA's Model Optimizer, by its algorithm (vllm/model_executor/layers/quantization/modelopt.py)."""
    algorithm = str(section.get("quant_algo") or "FP8").upper()
    if algorithm == "FP8":
        return Storage(8, matrix_bytes=2 * BLOCK_SCALE_BYTES)
    if algorithm in ("NVFP4", "NVFP4_AWQ", "W4A16_NVFP4"):
        return nvfp4(section)
    if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
        return by_row(section)
    if algorithm in ("FP8_PB_WO", "FP8_BLOCK"):
        group = section.get("group_size") or DEFAULT_GROUP_SIZE
        return fp8({"weight_block_size": [group, group]})
    if algorithm == "MXFP8":
        return mxfp8(section)
    known = ", ".join(MODELOPT)
    raise BadInput(f"{SECTION}.quant_algo", f"{shown(algorithm)} has no known size here; known are {known}")


def quark(rule: Any, where: str) -> Storage | None:
    """A rule of AMD's Quark, by its `weight`: dtype, qscheme, group_size. None: these modules stay as they are."""
    weight = rule.get("weight") if isinstance(rule, Mapping) else None
    if weight is None:
        return None
    if not isinstance(weight, Mapping):
        raise BadInput(f"{where}.weight", "must be an object")
    kind, scheme = str(weight.get("dtype")), str(weight.get("qscheme"))
    bits = next((bits for bits in (8, 6, 4, 2) if str(bits) in kind), 0)
    if not bits:
        raise BadInput(
            f"{where}.weight.dtype", f"{shown(kind)} has no known size here; known are fp8, int8, fp6, fp4, int4"
        )
    if scheme == "per_group":
        return Storage(bits, _group(weight, where), scale_bytes=1 if kind.startswith("fp") else GROUP_SCALE_BYTES)
    inputs = rule.get("input_tensors")
    integers = kind == "int8" and isinstance(inputs, Mapping) and inputs.get("dtype") == "int8"
    floats = kind == "fp8_e4m3"  # vLLM's QuarkW8A8Fp8
    if scheme == "per_channel":
        return Storage(bits, scale_bytes=BLOCK_SCALE_BYTES, int8_inputs=integers, fp8_inputs_only=floats)
    return Storage(bits, matrix_bytes=2 * BLOCK_SCALE_BYTES, int8_inputs=integers, fp8_inputs_only=floats)


def torchao(rule: Any) -> Storage | None:
    """A rule of torchao, by the name of its configuration. None: these modules stay as they are."""
    data = rule.get("_data") if isinstance(rule, Mapping) else None
    name = str((rule.get("_type") if isinstance(rule, Mapping) else rule) or "").lower().replace("_", "")
    if "int4weightonly" in name:
        group = data.get("group_size") if isinstance(data, Mapping) else None
        # A scale and a zero point in 16 bits each.
        return Storage(4, _group({"group_size": group or DEFAULT_GROUP_SIZE}), scale_bytes=2 * GROUP_SCALE_BYTES)
    if name.startswith(("int8", "float8", "intx")):
        return Storage(8, scale_bytes=BLOCK_SCALE_BYTES)
    return None


def compressed(group: Mapping[str, Any], where: str) -> Storage:
    """One group of compressed-tensors: its weights, and whether its inputs are integers as well."""
    layout, inputs = _weights(group["weights"], f"{where}.weights"), group.get("input_activations")
    both = layout.bits == 8 and _is_int8(group["weights"]) and _is_int8(inputs)
    return replace(layout, int8_inputs=True) if both else layout


def _is_int8(numbers: Any) -> bool:
    return isinstance(numbers, Mapping) and numbers.get("num_bits") == 8 and numbers.get("type", "int") == "int"


def _weights(weights: Any, where: str) -> Storage:
    """By num_bits, type, strategy, group_size, symmetric."""
    if not isinstance(weights, Mapping):
        raise BadInput(where, "must be an object")
    bits, strategy = weights.get("num_bits"), weights.get("strategy")
    if bits not in (2, 3, 4, 8):
        raise BadInput(f"{where}.num_bits", f"must be 2, 3, 4 or 8, not {shown(bits)}")
    zero = 0 if weights.get("symmetric", True) else bits
    if strategy == "tensor":
        return Storage(bits, matrix_bytes=BLOCK_SCALE_BYTES)
    if strategy == "channel":
        wide = BLOCK_SCALE_BYTES if bits == 8 else GROUP_SCALE_BYTES
        return Storage(bits, scale_bytes=wide, zero_bits=zero)
    if strategy == "block":
        return fp8({"weight_block_size": weights.get("block_structure")})
    if strategy == "tensor_group":  # NVFP4: FP8 scales, and a float32 one a matrix for weights and inputs
        return Storage(bits, _group(weights, where), scale_bytes=1, matrix_bytes=2 * BLOCK_SCALE_BYTES)
    if strategy == "group":
        scale = 1 if weights.get("type") == "float" and bits == 4 else GROUP_SCALE_BYTES
        index = GROUP_INDEX_BYTES if weights.get("actorder") in ("group", True) else 0
        return Storage(bits, _group(weights, where), scale_bytes=scale, zero_bits=zero, column_bytes=index)
    raise BadInput(
        f"{where}.strategy", f"{shown(strategy)} has no known size here; known are tensor, channel, group, block"
    )


def read_bits(section: Mapping[str, Any], *names: str) -> int:
    """The bits of a weight, by the first of the names that is there; 4 where none is."""
    bits = next((section[name] for name in names if name in section), 4)
    if bits not in (2, 3, 4, 8):
        raise BadInput(f"{SECTION}.bits", f"must be 2, 3, 4 or 8, not {shown(bits)}")
    return int(bits)


def _group(section: Mapping[str, Any], where: str = SECTION) -> int | None:
    """Columns that share a scale; None: the whole row."""
    group = section.get("group_size", section.get("q_group_size", DEFAULT_GROUP_SIZE))
    if not isinstance(group, int) or isinstance(group, bool) or group == 0 or group < -1:
        raise BadInput(f"{where}.group_size", f"must be a positive whole number or -1, not {shown(group)}")
    return None if group == -1 else group
