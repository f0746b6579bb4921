"""Bytes per weight: the dtype that the engine computes in, and the quantisation of its linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.errors import BadInput

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ALIASES = {"float": "float32", "half": "float16", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
QUANTIZATIONS = ("auto", "none", "fp8", "awq", "gptq")

# AutoAWQ and AutoGPTQ keep, per group of weights, one scale in 16 bits and one zero point as wide as a weight.
GROUP_SCALE_BYTES = 2
DEFAULT_GROUP_SIZE = 128  # both tools' default `group_size`


@dataclass(frozen=True, slots=True)
class Precision:
    """How wide weights are. `bytes_per_linear_weight` holds for linear layers; all else is in `dtype`."""

    dtype: str
    quantization: str
    bytes_per_linear_weight: float
    notes: tuple[str, ...] = ()

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one number of `dtype`."""
        return DTYPE_BYTES[self.dtype]


def read_precision(config: Mapping[str, Any], dtype: str, quantization: str) -> Precision:
    """What the engine will use, given config.json and what was asked for.

    Raises BadInput for a dtype or quantisation whose sizes are not known here.
    """
    chosen, notes = _dtype(config, dtype)
    method = _method(config, quantization)
    if method == "none":
        per_weight = float(DTYPE_BYTES[chosen])
    elif method == "fp8":
        per_weight = 1.0  # one scale a tensor: some bytes, no more
    else:
        per_weight = _grouped(config.get("quantization_config") or {}, method)
    return Precision(chosen, method, per_weight, notes)


def _dtype(config: Mapping[str, Any], asked: str) -> tuple[str, tuple[str, ...]]:
    if asked != "auto":
        name = ALIASES.get(asked, asked)
        if name not in DTYPE_BYTES:
            raise BadInput("dtype", f"{asked!r} is not one of auto, bfloat16, float16, float32")
        return name, ()
    written = config.get("dtype") or config.get("torch_dtype")
    if written is None:
        # vLLM then takes the 16-bit type that the hardware has.
        return "bfloat16", ("config.json names no dtype: 16 bits a weight are assumed, as vLLM does",)
    name = ALIASES.get(str(written).removeprefix("torch."), str(written).removeprefix("torch."))
    if name not in DTYPE_BYTES:
        raise BadInput(
            "config.torch_dtype", f"{written!r} is not known here: set dtype to bfloat16, float16 or float32"
        )
    if name == "float32":
        return name, ("config.json says float32, and so it is served: dtype bfloat16 would take half the memory",)
    return name, ()


def _method(config: Mapping[str, Any], asked: str) -> str:
    if asked not in QUANTIZATIONS:
        raise BadInput("quantization", f"{asked!r} has no known size here: use one of {', '.join(QUANTIZATIONS)}")
    section = config.get("quantization_config")
    if section is not None and not isinstance(section, Mapping):
        raise BadInput("config.quantization_config", "must be an object")
    written = str((section or {}).get("quant_method", "none")).lower()
    if asked == "auto":
        if written not in QUANTIZATIONS:
            raise BadInput(
                "config.quantization_config.quant_method",
                f"{written!r} has no known size here: set quantization to the nearest of fp8, awq, gptq, none",
            )
        return written
    if asked in ("awq", "gptq") and section is None:
        raise BadInput(
            "quantization", f"{asked} needs a checkpoint made with it, and config has no quantization_config"
        )
    return asked


def _grouped(section: Mapping[str, Any], method: str) -> float:
    bits = section.get("bits", section.get("w_bit", 4))
    group = section.get("group_size", section.get("q_group_size", DEFAULT_GROUP_SIZE))
    if bits not in (2, 3, 4, 8):
        raise BadInput("config.quantization_config.bits", f"must be 2, 3, 4 or 8, not {bits!r}")
    if not isinstance(group, int) or isinstance(group, bool) or group == 0 or group < -1:
        raise BadInput("config.quantization_config.group_size", f"must be a positive whole number or -1, not {group!r}")
    weight = float(bits) / 8
    if group == -1:  # one group a column: its scales are too few to count
        return weight
    return weight + (GROUP_SCALE_BYTES + weight) / group
