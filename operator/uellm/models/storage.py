"""The memory layout of quantised matrices: bits per number, and scales and zero points by group.

A `Storage` describes the layout of one method. The function that builds it names the source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.errors import BadInput
from uellm.models.kernels import Kernel
from uellm.models.weights import WeightMatrix

SECTION = "config.quantization_config"
BLOCK_SCALE_BYTES = 4  # float32
GROUP_SCALE_BYTES = 2  # as wide as activations
GROUP_INDEX_BYTES = 4  # GPTQ's g_idx: an int32 for each column
DEFAULT_GROUP_SIZE = 128  # AutoAWQ's and AutoGPTQ's own default
MXFP4_GROUP, NVFP4_GROUP = 32, 16  # numbers that share an 8-bit scale, by the formats' definitions
BITSANDBYTES_GROUP = 64  # bitsandbytes' block size; the engine keeps the absolute maximum of each in float32


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
        raise BadInput(f"{SECTION}.weight_block_size", f"must be two positive whole numbers, not {block!r}")
    return Storage(8, columns=block[1], rows=block[0], scale_bytes=BLOCK_SCALE_BYTES)


def by_row(section: Mapping[str, Any]) -> Storage:
    """Eight bits and a float32 scale a row: FBGEMM's FP8 and bitsandbytes' LLM.int8()."""
    return Storage(8, scale_bytes=BLOCK_SCALE_BYTES)


def awq(section: Mapping[str, Any]) -> Storage:
    """AutoAWQ: a 16-bit scale and a zero point as wide as a weight for each group."""
    bits = _bits(section, "bits", "w_bit")
    return Storage(bits, _group(section), scale_bytes=GROUP_SCALE_BYTES, zero_bits=bits)


def gptq(section: Mapping[str, Any]) -> Storage:
    """AutoGPTQ and GPTQModel: as AWQ, and the group of each column where `desc_act` made the order matter."""
    bits = _bits(section, "bits")
    index = GROUP_INDEX_BYTES if section.get("desc_act") is True else 0
    return Storage(bits, _group(section), scale_bytes=GROUP_SCALE_BYTES, zero_bits=bits, column_bytes=index)


def bitsandbytes(section: Mapping[str, Any]) -> Storage:
    """bitsandbytes: four bits by blocks, or eight bits by rows; `load_in_4bit` is what the engine takes by itself."""
    if section.get("load_in_8bit"):
        return by_row(section)
    return Storage(4, BITSANDBYTES_GROUP, scale_bytes=BLOCK_SCALE_BYTES)


def mxfp4(section: Mapping[str, Any]) -> Storage:
    """OCP microscaling FP4: 4 bits, and an 8-bit exponent for 32 numbers."""
    return Storage(4, MXFP4_GROUP, scale_bytes=1)


def modelopt(section: Mapping[str, Any]) -> Storage:
    """NVIDIA's Model Optimizer: FP8 by matrix, or NVFP4 by groups of 16 with two scales a matrix besides."""
    algorithm = section.get("quant_algo", "FP8")
    if algorithm == "FP8":
        return Storage(8, matrix_bytes=2 * BLOCK_SCALE_BYTES)
    if algorithm == "NVFP4":
        return Storage(4, NVFP4_GROUP, scale_bytes=1, matrix_bytes=2 * BLOCK_SCALE_BYTES)
    raise BadInput(f"{SECTION}.quant_algo", f"{algorithm!r} has no known size here; known are FP8, NVFP4")


def compressed(weights: Any, where: str) -> Storage:
    """One group of compressed-tensors, by its `weights`: num_bits, type, strategy, group_size, symmetric."""
    if not isinstance(weights, Mapping):
        raise BadInput(where, "must be an object")
    bits, strategy = weights.get("num_bits"), weights.get("strategy")
    if bits not in (2, 3, 4, 8):
        raise BadInput(f"{where}.num_bits", f"must be 2, 3, 4 or 8, not {bits!r}")
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
    raise BadInput(f"{where}.strategy", f"{strategy!r} has no known size here; known are tensor, channel, group, block")


def _bits(section: Mapping[str, Any], *names: str) -> int:
    bits = next((section[name] for name in names if name in section), 4)
    if bits not in (2, 3, 4, 8):
        raise BadInput(f"{SECTION}.bits", f"must be 2, 3, 4 or 8, not {bits!r}")
    return int(bits)


def _group(section: Mapping[str, Any], where: str = SECTION) -> int | None:
    group = section.get("group_size", section.get("q_group_size", DEFAULT_GROUP_SIZE))
    if not isinstance(group, int) or isinstance(group, bool) or group == 0 or group < -1:
        raise BadInput(f"{where}.group_size", f"must be a positive whole number or -1, not {group!r}")
    return None if group == -1 else group
