"""What a GPU cannot do whatever its memory: by its compute capability, and by how its driver hands it out.

Minimum capabilities are vLLM's own (get_min_capability of vllm/model_executor/layers/quantization/*.py;
supported_dtypes of vllm/platforms/cuda.py). A GPU that does not tell its capability passes:
the engine will say.
"""

from __future__ import annotations

from uellm.hardware import Device
from uellm.planner.request import PlanRequest

# vLLM's kernels for CUDA are built from here on (README of its releases).
LEAST_CAPABILITY = (7, 0)
LEAST_FOR_BFLOAT16 = (8, 0)
# Quantization methods by the name that vLLM gives them; others run wherever vLLM does.
LEAST_FOR_QUANTIZATION = {
    "fp8": (7, 5),
    "fbgemm_fp8": (8, 0),
    "awq": (7, 5),
    "awq_marlin": (7, 5),
    "gptq_marlin": (7, 5),
    "mxfp4": (8, 0),
    "experts_int8": (8, 0),
    "modelopt": (8, 0),
    "torchao": (7, 5),
    "fp_quant": (10, 0),
}
# Below it FP8 weights are unpacked to 16 bits for every product: the memory is saved, the time is not.
NATIVE_FP8 = (8, 9)
# Models that vLLM refuses to compute in float16 (vllm/config/model.py, _FLOAT16_NOT_SUPPORTED_MODELS).
NO_FLOAT16 = ("Gemma2", "Gemma3", "Glm4")
# NVIDIA's plugin names the shares of a time-sliced GPU `<uuid>::<n>`, and its resource `....shared`.
SHARE_MARK = "::"
SHARED_RESOURCE = ".shared"


def capability(device: Device) -> tuple[int, int] | None:
    """Major and minor; None where it is not told."""
    major, dot, minor = device.compute_capability.partition(".")
    return (int(major), int(minor)) if dot and major.isdecimal() and minor.isdecimal() else None


def unusable(device: Device, request: PlanRequest) -> str:
    """Why the device cannot run the service, as a sentence; empty where it can."""
    if SHARE_MARK in device.uuid or device.resource_name.endswith(SHARED_RESOURCE):
        return (
            f"{device.uuid} is a share of a time-sliced GPU: its memory is everybody's, so no plan can count on it; "
            "turn time-slicing off on the node, or use MIG"
        )
    own = capability(device)
    if own is None or own[0] == 0:
        return ""
    return _too_old(device, own, request)


def _too_old(device: Device, own: tuple[int, int], request: PlanRequest) -> str:
    model, name = request.architecture, f"{device.product or device.uuid} has compute capability {_text(own)}"
    if own < LEAST_CAPABILITY:
        return f"{name}, and vLLM needs {_text(LEAST_CAPABILITY)}"
    least = LEAST_FOR_QUANTIZATION.get(model.quantization)
    if least is not None and own < least:
        return f"{name}, and quantization {model.quantization} needs {_text(least)} in vLLM"
    if model.dtype == "bfloat16" and own < LEAST_FOR_BFLOAT16:
        if request.engine.dtype != "auto":
            return (
                f"{name}, and vLLM refuses bfloat16 below {_text(LEAST_FOR_BFLOAT16)}: set spec.model.dtype to float16"
            )
        if model.name.startswith(NO_FLOAT16):
            return f"{name}, without bfloat16, and vLLM would compute {model.name} in float32: twice the memory"
    return ""


def remarks(devices: list[Device], request: PlanRequest) -> list[str]:
    """What the engine will do differently on these devices, a sentence each."""
    model, notes = request.architecture, []
    old = _products(devices, LEAST_FOR_BFLOAT16)
    if old and model.dtype == "bfloat16":
        notes.append(f"{old} cannot compute in bfloat16: vLLM computes in float16 there, with the same sizes")
    slow = _products(devices, NATIVE_FP8)
    if slow and model.quantization == "fp8":
        notes.append(
            f"{slow} cannot multiply in FP8 (it needs compute capability {_text(NATIVE_FP8)}): vLLM keeps the weights "
            "in FP8 and computes in 16 bits"
        )
    return notes


def _products(devices: list[Device], least: tuple[int, int]) -> str:
    """The products below a capability, in words."""
    below = {
        device.product or device.uuid
        for device in devices
        if (own := capability(device)) is not None and own[0] and own < least
    }
    return ", ".join(sorted(below))


def _text(value: tuple[int, int]) -> str:
    return f"{value[0]}.{value[1]}"
