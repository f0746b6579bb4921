"""Quantisations and data types that vLLM 0.32 does not start with, although their sizes are known.

An engine of the user's own may, and so may the one that a running service was started with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from uellm.errors import BadInput
from uellm.models.online import ONLINE
from uellm.models.schemes import METHODS, gptq_dynamic
from uellm.models.shown import shown
from uellm.models.storage import MODELOPT, SECTION, read_bits

_ANY_DTYPE = ("none", "compressed-tensors", "torchao")
_BFLOAT16_ALONE = ("mxfp4", "mxfp8")  # of checkpoints


def check_served(section: Mapping[str, Any], method: str, dtype: str) -> None:
    """Raise BadInput for what the engine does not start with. `section`: the checkpoint's; empty where it has none."""
    if method == "bitsandbytes":
        message = "bitsandbytes is not served by the engine any more: take the model in 16 bits, or in FP8, AWQ or GPTQ"
        raise BadInput(f"{SECTION}.quant_method" if section else "quantization", message)
    if section and (check := _CHECKS.get(method)) is not None:
        check(section)
    _check_dtype(dtype, method, section)


def _check_awq(section: Mapping[str, Any]) -> None:
    _check_bits(section, "AWQ", (4,), "w_bit", "bits")


def _check_gptq(section: Mapping[str, Any]) -> None:
    for each in (section, *(own for _, own in gptq_dynamic(section))):
        # vLLM's AutoGPTQConfig.TYPE_MAP.
        _check_bits(each, "GPTQ", (4, 8), "bits")
        if each.get("sym") is False:
            raise BadInput(
                f"{SECTION}.sym",
                "is false, and the engine serves symmetric GPTQ alone: take a checkpoint with sym true",
            )
        if each.get("desc_act") is True and each.get("group_size") != -1:
            raise BadInput(
                f"{SECTION}.desc_act",
                "is true, and the engine no longer orders columns by activation: take a checkpoint with desc_act false",
            )


def _check_bits(section: Mapping[str, Any], method: str, served: tuple[int, ...], *names: str) -> None:
    bits = read_bits(section, *names)
    if bits not in served:
        widths = " and ".join(map(str, served))
        raise BadInput(
            f"{SECTION}.bits",
            f"is {bits}, and the engine serves {method} in {widths} bits alone: take such a checkpoint",
        )


def _check_modelopt(section: Mapping[str, Any]) -> None:
    algorithm = section.get("quant_algo")
    if str(algorithm).upper() not in MODELOPT:
        given = "is missing" if algorithm is None else f"{shown(algorithm)} is not served by the engine"
        served = f"{', '.join(MODELOPT[:-1])} and {MODELOPT[-1]}"
        raise BadInput(f"{SECTION}.quant_algo", f"{given}: take a checkpoint made with one of {served}")


def _check_dtype(dtype: str, method: str, section: Mapping[str, Any]) -> None:
    """The types are those of each method's get_supported_act_dtypes."""
    if method in _ANY_DTYPE or method not in (*METHODS, *ONLINE):
        return
    served = ["bfloat16", "float16"]
    if section and (method in _BFLOAT16_ALONE or str(section.get("quant_algo")).upper() == "MXFP8"):
        served = ["bfloat16"]
    if dtype not in served:
        raise BadInput("dtype", f"{dtype} is refused by the engine for {method}: set {' or '.join(served)}")


_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "awq": _check_awq,
    "gptq": _check_gptq,
    "modelopt": _check_modelopt,
}
